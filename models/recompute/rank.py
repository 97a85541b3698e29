"""Measures what each layer keeps at each level, and ranks the layers by the gain of level `block`."""

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
from models.recompute.levels import apply_recompute, is_conv_unit, layer_forward, remove_recompute, repeated_parts


@dataclass(frozen=True)
class LayerBytes:
    """Bytes that a top-level layer keeps for backward, without its input, which counts in the layer before.

    A layer that alone changes from `none` to `elementwise` saves ``none_bytes - elementwise_bytes``. A layer that
    alone changes from `elementwise` to `block` saves ``elementwise_bytes - block_bytes``. At `none` and `block`, the
    convolutions that read the output keep it too. At `elementwise` they keep it only if they are at `none`.
    """

    index: int
    """Index of the layer in ``network.model``."""
    name: str
    """Name of the layer's class."""
    none_bytes: int
    """Bytes kept inside the layer at level `none`."""
    elementwise_bytes: int
    """Bytes kept inside the layer at level `elementwise`."""
    block_bytes: int
    """Bytes kept at level `block`: the output; 0 for the detection head; ``elementwise_bytes`` if not repeated."""
    output_bytes: int
    """Bytes of the output; for the detection head, of the predictions, which the loss frees."""
    flops: int
    """Multiplications and additions of the convolutions and matrix products in a forward pass."""


@dataclass(frozen=True)
class LayerGain:
    """Memory that level `block` saves in one top-level layer, compared with `elementwise`, and its price."""

    index: int
    """Index of the layer in ``network.model``."""
    saved_bytes: int
    """Bytes saved between forward and backward. A peak outside this layer falls by as many."""
    repeated_flops: int
    """Multiplications and additions of the convolutions and matrix products that run a second time."""


def rank_layers(
    network: DetectionModel, images_BCHW: Tensor, autocast: AbstractContextManager[object] | None = None
) -> list[LayerGain]:
    """Rank layers by bytes saved per operation repeated, best first; leaves out layers that save nothing.

    Also leaves out single convolutions: at `block` they keep the output instead of the raw output, which is as large.

    Args:
        network: An Ultralytics ``DetectionModel`` on any device; not changed.
        images_BCHW: Meta tensor of a micro-batch's shape, in the dtype of the activations: autocast's dtype with
            autocast.
        autocast: Context that imitates autocast on the meta device. Without it, the weights get the images' dtype,
            which gives as good a ranking.

    Memory: one copy of the network's weights, until the copy moves to the meta device.
    """
    gains = [
        LayerGain(layer.index, layer.elementwise_bytes - layer.block_bytes, layer.flops)
        for layer in measure_layers(network, images_BCHW, autocast)
        if not is_conv_unit(network.model[layer.index])
    ]
    worthwhile = (gain for gain in gains if gain.saved_bytes > 0)
    return sorted(worthwhile, key=lambda gain: gain.saved_bytes / gain.repeated_flops, reverse=True)


def measure_layers(
    network: DetectionModel, images_BCHW: Tensor, autocast: AbstractContextManager[object] | None = None
) -> list[LayerBytes]:
    """Measure all layers on the meta device at `none` and `elementwise`; for the arguments see `rank_layers`."""
    network = copy.deepcopy(network).to("meta", images_BCHW.dtype if autocast is None else None).train()
    with autocast or nullcontext():
        apply_recompute(network, "elementwise")
        lean = _Pass(network, partial(layer_forward, fused=False), recipes.pack, images_BCHW)
        remove_recompute(network)
        plain = _Pass(network, lambda layer, x: type(layer).forward(layer, x), lambda tensor: tensor, images_BCHW)
    measured = zip(network.model, plain.kept_bytes, lean.kept_bytes, lean.output_bytes, lean.flops, strict=True)
    return [
        LayerBytes(i, type(layer).__name__, none, elementwise, _block_bytes(layer, elementwise, output), output, flops)
        for i, (layer, none, elementwise, output, flops) in enumerate(measured)
    ]


def _block_bytes(layer: nn.Module, elementwise_bytes: int, output_bytes: int) -> int:
    parts = repeated_parts(layer)
    if not parts:
        return elementwise_bytes
    return output_bytes if layer in parts else 0


class _Pass:
    """One forward pass: the bytes that each layer keeps inside and returns, and its FLOPs."""

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
    """Storages of those values that are tensors, by address."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {storage._cdata: storage for storage in storages}
