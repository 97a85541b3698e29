"""Recompute levels: training keeps fewer activations and computes the missing ones again in backward.

**What PyTorch keeps.** Nearly all activations that backward needs belong to units of convolution, BatchNorm and SiLU.
Take a unit with ``c`` output channels on ``h x w`` positions, ``B`` images, and ``s`` bytes per number (2 under
autocast). PyTorch keeps three maps of ``s * B * c * h * w`` bytes: the raw output of the convolution (for BatchNorm),
the output of BatchNorm (for SiLU) and the output of SiLU (for the next convolution). With ReLU instead of SiLU, it
keeps only the first and the third map. A convolution whose input is a concatenation, a sum or an average keeps this
input too: ``s * B * c_in * h * w`` bytes. Max-pooling keeps indices, 8 bytes for each output. Autocast adds a
half-precision copy of each weight, and the float32 result of softmax beside its half-precision copy.

**Level `elementwise`** keeps of each unit the first map, ``s * B * c * h * w`` bytes, and two numbers per channel. It
keeps nothing for other activations, concatenation, sum, product, chunk, padding, upsampling, pooling and weight copies,
and for attention only the scores instead of their softmax. Elementwise operations compute the rest from the raw
convolution outputs: see `norm_act`, `input_only`, `replacements` and `recipes`. No convolution and no matrix product
runs twice.

**Level `block`** keeps only the output of each top-level layer, ``s * B * c_out * h * w`` bytes. Backward repeats the
forward pass of one layer at a time, at level `elementwise`: see `block`. The detection head is repeated in parts, a
branch of a level at a time, and keeps nothing inside. Layers without a convolution gain nothing from this level and get
`elementwise`. `rank` finds the layers where `block` saves most for its price.

With fused kernels, recomputed layers also take fewer passes over memory. A unit whose output is split in halves writes
two maps (`_Halves`), the kernel that writes the output of a unit adds the residual of a bottleneck (`_bottleneck`),
`copies` joins and enlarges maps, and `pooling` pools them.

The levels change memory and time only. On a CPU, loss and running statistics are equal bit for bit, and gradients
differ by rounding. Evaluation mode and ``torch.no_grad()`` run the original code. As with all saved tensor hooks,
nothing detects a weight that is changed in place between forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from ultralytics.nn.modules import C2PSA, C2f, Conv, Detect, DWConv
from ultralytics.nn.modules.block import Bottleneck
from ultralytics.nn.tasks import DetectionModel

from models.precision import autocast_disabled
from models.recompute import recipes
from models.recompute.block import DroppedLayer
from models.recompute.copies import Upsample, is_fused
from models.recompute.norm_act import BatchNormAct
from models.recompute.repeat import can_draw
from models.recompute.replacements import Replacements

Level = Literal["none", "elementwise", "block"]


def apply_recompute(
    network: DetectionModel, level: Level, per_layer: Mapping[int, Level] | None = None, fused_kernels: bool = False
) -> None:
    """Set the recompute levels of a network and replace those of an earlier call.

    Only the ``forward`` of module instances changes. Classes, parameters, buffers and ``state_dict`` keys stay, and
    the network can still be copied and pickled.

    Args:
        network: An Ultralytics ``DetectionModel``; its top-level layers are ``network.model``.
        level: Level of all layers without an entry in ``per_layer``.
        per_layer: Levels of single layers, by index into ``network.model``.
        fused_kernels: Use Triton kernels in layers that recompute, where Triton works.

    Raises:
        ValueError: If a level or an index does not exist.
    """
    num_layers = len(network.model)
    levels = dict.fromkeys(range(num_layers), level) | dict(per_layer or {})
    for index, layer_level in levels.items():
        if layer_level not in get_args(Level):
            raise ValueError(f"model.recompute: {layer_level!r}: must be one of {', '.join(get_args(Level))}")
        if not 0 <= index < num_layers:
            raise ValueError(f"model.recompute: layer {index}: must be between 0 and {num_layers - 1}")
    remove_recompute(network)
    for index, layer_level in levels.items():
        if layer_level != "none":
            _transform(index, network.model[index], layer_level, fused_kernels)


def remove_recompute(network: DetectionModel) -> None:
    """Restore the original forward pass of every module of a network, or of a copy of it."""
    for module in network.modules():
        if getattr(module.__dict__.get("forward"), "func", None) is _run_forward:
            del module.forward


def repeated_parts(layer: nn.Module) -> list[nn.Module]:
    """Modules that level `block` repeats one at a time: the branches of a head, or the whole layer.

    A layer without a convolution has none: it gains no more than from `elementwise`.
    """
    if isinstance(layer, Detect):
        return [*layer.cv2, *layer.cv3]
    return [layer] if any(isinstance(module, nn.Conv2d) for module in layer.modules()) else []


def _transform(index: int, layer: nn.Module, level: Level, fused: bool) -> None:
    for module in layer.modules():
        if is_conv_unit(module):
            _replace_forward(module, _conv_unit, fused=fused)
        elif _is_norm(module):
            _replace_forward(module, _batch_norm, fused=fused)
    for module in layer.modules():
        if isinstance(module, C2f | C2PSA) and _is_one_operation(module.cv1):  # they split its output in halves
            _replace_forward(module.cv1, _conv_unit, fused=fused, is_halved=True)
        elif isinstance(module, Bottleneck) and module.add and _is_one_operation(module.cv2):
            _replace_forward(module, _bottleneck, fused=fused)
    parts = repeated_parts(layer) if level == "block" else []
    for part in parts:
        _replace_forward(
            part,
            _block,
            fused=fused,
            name=f"layer {index} ({type(layer).__name__})",
            stateful_modules=_stateful_modules(part),
            draws=any(can_draw(module) for module in part.modules()),
            holds_output=part is layer,  # the outputs of a head's branches are only concatenated
        )
    if layer not in parts:
        _replace_forward(layer, _elementwise, fused=fused)


def _stateful_modules(part: nn.Module) -> tuple[nn.Module, ...]:
    """Modules with buffers that a repeated forward pass would change; `BatchNormAct` does not change its own."""
    return tuple(module for module in part.modules() if not _is_norm(module) and _has_buffers(module))


def _has_buffers(module: nn.Module) -> bool:
    return next(module.buffers(recurse=False), None) is not None


def _replace_forward(module: Any, forward: Callable[..., object], **options: object) -> None:
    module.forward = partial(_run_forward, forward, module, **options)


def _run_forward(forward: Callable[..., object], module: nn.Module, x: object, **options: object) -> object:
    """Run ``forward`` in training, else the forward pass of the module's class."""
    if module.training and torch.is_grad_enabled():
        return forward(module, x, **options)
    return type(module).forward(module, x)


def is_conv_unit(module: nn.Module) -> bool:
    """Whether a module computes ``act(bn(conv(x)))`` with a normalization that `BatchNormAct` supports."""
    return type(module) in (Conv, DWConv) and _is_norm(module.bn)


def _is_norm(module: object) -> bool:
    """Whether `BatchNormAct` supports a normalization."""
    return (
        type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats and module.momentum is not None
    )


def _is_one_operation(module: nn.Module) -> bool:
    """Whether `BatchNormAct` does the activation of a unit as well."""
    return is_conv_unit(module) and isinstance(module.act, nn.SiLU | nn.Identity)


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor, fused: bool) -> Tensor:
    out: Tensor = BatchNormAct.apply(x, norm.weight, norm.bias, norm, False, 1, None, fused)
    return out


def _norm_act(
    unit: Conv, raw: Tensor, fused: bool, num_parts: int = 1, residual: Tensor | None = None
) -> tuple[Tensor, ...]:
    """BatchNorm and activation of a unit in ``num_parts`` tensors, from the output of its convolution."""
    norm, is_silu = unit.bn, isinstance(unit.act, nn.SiLU)
    out = BatchNormAct.apply(raw, norm.weight, norm.bias, norm, is_silu, num_parts, residual, fused)
    return out if isinstance(out, tuple) else (out,)


class _Halves(NamedTuple):
    """The two halves of a map's channels, for modules that split the map in halves at once."""

    first: Tensor
    second: Tensor

    def chunk(self, chunks: int, dim: int) -> _Halves:
        """Return the halves, as `C2f` splits its map."""
        assert (chunks, dim) == (2, 1)
        return self

    def split(self, sizes: tuple[int, int], dim: int) -> _Halves:
        """Return the halves, as `C2PSA` splits its map."""
        assert sizes == (self.first.shape[1], self.second.shape[1]) and dim == 1
        return self


def _conv_unit(unit: Conv, x: Tensor, fused: bool, is_halved: bool = False) -> Tensor | _Halves:
    raw = unit.conv(x)
    if not _is_one_operation(unit):
        out: Tensor = unit.act(_batch_norm(unit.bn, raw, fused))
        return out
    if is_halved and (is_fused(raw, fused) or raw.is_meta):
        # On a GPU, a convolution copies a slice of channels each time before it reads it.
        return _Halves(*_norm_act(unit, raw, fused, num_parts=2))
    return _norm_act(unit, raw, fused)[0]


def _bottleneck(module: Bottleneck, x: Tensor, fused: bool) -> object:
    if not is_fused(x, fused):
        return type(module).forward(module, x)
    return _norm_act(module.cv2, module.cv2.conv(module.cv1(x)), fused, residual=x)[0]


def _elementwise(layer: nn.Module, x: object, fused: bool) -> object:
    with saved_tensors_hooks(recipes.pack, recipes.unpack):
        return layer_forward(layer, x, fused)


def _block(
    layer: nn.Module,
    x: object,
    fused: bool,
    name: str,
    stateful_modules: tuple[nn.Module, ...],
    draws: bool,
    holds_output: bool,
) -> object:
    if draws and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return _elementwise(layer, x, fused)  # a generator that a CUDA graph uses cannot be read or set
    forward = partial(layer_forward, layer, fused=fused)
    return DroppedLayer(name, forward, x, stateful_modules, draws, holds_output).run(x)


def layer_forward(layer: nn.Module, x: Any, fused: bool) -> Any:
    """Forward pass of a top-level layer at `elementwise` or `block`, without its saved tensor hooks."""
    if is_conv_unit(layer):
        return _conv_unit(layer, x, fused)
    if isinstance(layer, nn.Upsample):
        scale = layer.scale_factor
        if is_fused(x, fused) and layer.mode == "nearest" and isinstance(scale, float) and scale.is_integer():
            return Upsample.apply(x, int(scale))
        with autocast_disabled(x.device):  # autocast would copy the values in float32
            return type(layer).forward(layer, x)
    with Replacements(fused):
        return type(layer).forward(layer, x)
