"""What each layer keeps at each level, and which layers to repeat first: found from the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel

from models.recompute import recipes
from models.recompute.levels import apply_recompute, can_repeat, is_conv_unit, layer_forward, remove_recompute


@dataclass(frozen=True)
class LayerBytes:
    """What backward needs of a top-level layer, without the layer's input, which belongs to the layer before.

    Set alone to another level, a layer saves the difference of what it keeps inside, and for `block` its output
    less. At `none` and `block` the output is kept as well, by whatever takes it into a convolution; at
    `elementwise` it is not, if those that take it are not at `none` themselves.
    """

    index: int
    """Of the layer, in ``network.model``."""
    name: str
    """Class of the layer."""
    none_bytes: int
    """Kept inside at level `none`."""
    elementwise_bytes: int
    """Kept inside at level `elementwise`; at `block` it is nothing, if `can_repeat`."""
    output_bytes: int
    """The output; of the detection head, the predictions."""
    flops: int
    """Multiplications and additions of the convolutions and matrix products, forward."""


@dataclass(frozen=True)
class LayerGain:
    """What level `block` saves in one top-level layer, compared with `elementwise`, and its price."""

    index: int
    """Of the layer, in ``network.model``."""
    saved_bytes: int
    """Kept less between forward and backward. The peak falls by as much while it is not inside this layer."""
    repeated_flops: int
    """Multiplications and additions of the layer's convolutions and matrix products, which run once more."""


def rank_layers(
    network: DetectionModel, images_BCHW: Tensor, autocast: AbstractContextManager[object] | None = None
) -> list[LayerGain]:
    """Rank layers by bytes saved per operation repeated, best first; those that save nothing are left out.

    A single convolution is left out too: at `block` it keeps its output in place of the raw one, which is as large.

    Args:
        network: An Ultralytics ``DetectionModel``, on any device; it is not changed.
        images_BCHW: Meta tensor of a micro-batch's shape, in the dtype of the activations (autocast's dtype, if
            there is autocast).
        autocast: What casts on the meta device as autocast would. Without it the weights count as if they were of
            the images' dtype, which is as good for a ranking.

    Memory: one copy of the network's weights until it has been moved to the meta device.
    """
    gains = [
        LayerGain(layer.index, layer.elementwise_bytes - layer.output_bytes, layer.flops)
        for layer in measure_layers(network, images_BCHW, autocast)
        if can_repeat(network.model[layer.index]) and not is_conv_unit(network.model[layer.index])
    ]
    worthwhile = (gain for gain in gains if gain.saved_bytes > 0)
    return sorted(worthwhile, key=lambda gain: gain.saved_bytes / gain.repeated_flops, reverse=True)


def measure_layers(
    network: DetectionModel, images_BCHW: Tensor, autocast: AbstractContextManager[object] | None = None
) -> list[LayerBytes]:
    """Forward passes on the meta device at both levels that keep something inside; arguments as of `rank_layers`."""
    network = copy.deepcopy(network).to("meta", images_BCHW.dtype if autocast is None else None).train()
    with autocast or nullcontext():
        apply_recompute(network, "elementwise")
        lean = _Pass(network, partial(layer_forward, fused=False), recipes.pack, images_BCHW)
        remove_recompute(network)
        plain = _Pass(network, lambda layer, x: type(layer).forward(layer, x), lambda tensor: tensor, images_BCHW)
    return [
        LayerBytes(index, type(layer).__name__, *sizes)
        for index, (layer, *sizes) in enumerate(
            zip(network.model, plain.kept_bytes, lean.kept_bytes, lean.output_bytes, lean.flops, strict=True)
        )
    ]


class _Pass:
    """One forward pass, layer by layer: what each keeps inside, puts out and computes."""

    def __init__(
        self,
        network: DetectionModel,
        forward: Callable[[nn.Module, Any], Any],
        pack: Callable[[Tensor], Tensor | recipes.Recipe],
        images_BCHW: Tensor,
    ) -> None:
        self.kept_bytes: list[int] = []
        self.output_bytes: list[int] = []
        self.flops: list[int] = []
        self._forward, self._pack = forward, pack
        self._elsewhere = _storages([*network.parameters(), *network.buffers(), images_BCHW])
        for layer in network.model:
            layer.forward = partial(self._run, layer)
        network(images_BCHW)
        for layer in network.model:
            del layer.forward

    def _run(self, layer: nn.Module, x: Any) -> Any:
        kept: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor | recipes.Recipe:
            packed = self._pack(tensor)
            if isinstance(packed, Tensor):
                kept.append(packed)
            return packed

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, recipes.unpack):
            out = self._forward(layer, x)
        made = {key: storage for key, storage in _storages(tree_iter(out)).items() if key not in self._elsewhere}
        self._elsewhere |= made
        inside = {key: storage for key, storage in _storages(kept).items() if key not in self._elsewhere}
        self.kept_bytes.append(sum(storage.nbytes() for storage in inside.values()))
        self.output_bytes.append(sum(storage.nbytes() for storage in made.values()))
        self.flops.append(counter.get_total_flops())
        return out


def _storages(values: Iterable[object]) -> dict[int, UntypedStorage]:
    """The storages of tensors, by address; others are skipped."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {storage._cdata: storage for storage in storages}
