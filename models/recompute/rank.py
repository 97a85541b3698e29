"""Which layers to repeat first: bytes saved per operation repeated, found from the network itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from models.recompute import apply_recompute, can_repeat, layer_forward, recipes


@dataclass(frozen=True)
class LayerGain:
    """What level `block` saves in one top-level layer, compared with `elementwise`, and its price."""

    index: int
    """Of the layer, in ``network.model``."""
    saved_bytes: int
    """Kept less between forward and backward. The peak falls by as much while it is not inside this layer."""
    repeated_flops: int
    """Multiplications and additions of the layer's convolutions and matrix products, which run once more."""


def rank_layers(network: nn.Module, images_BCHW: Tensor) -> list[LayerGain]:
    """Rank layers by bytes saved per operation repeated, best first; those that save nothing are left out.

    Args:
        network: An Ultralytics ``DetectionModel``, on any device; it is not changed.
        images_BCHW: Meta tensor of a micro-batch's shape, in the dtype of the activations (autocast's dtype, if
            there is autocast).

    Memory: one copy of the network's weights until it has been moved to the meta device.
    """
    network = copy.deepcopy(network).to("meta", images_BCHW.dtype).train()
    apply_recompute(network, "elementwise")
    gains: list[LayerGain] = []
    for index, layer in enumerate(network.model):
        if can_repeat(layer):
            layer.forward = partial(_measured, layer, index, gains)
    network(images_BCHW)
    worthwhile = (gain for gain in gains if gain.saved_bytes > 0)
    return sorted(worthwhile, key=lambda gain: gain.saved_bytes / gain.repeated_flops, reverse=True)


def _measured(layer: nn.Module, index: int, gains: list[LayerGain], x: Tensor) -> Any:
    """Forward of one layer at level `elementwise`, noting what it keeps and what it computes."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor | recipes.Recipe:
        packed = recipes.pack(tensor)
        if isinstance(packed, Tensor) and not isinstance(packed, nn.Parameter):
            kept[packed.untyped_storage()._cdata] = packed
        return packed

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, recipes.unpack):
        out = layer_forward(layer, x)
    kept.pop(x.untyped_storage()._cdata, None)
    kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    gains.append(LayerGain(index, kept_bytes - out.nbytes, counter.get_total_flops()))
    return out
