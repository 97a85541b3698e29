"""BatchNorm and SiLU as one operation that keeps only its input and two numbers per channel for backward.

The functions here use PyTorch's kernels, run on any device, and are the reference. `fused_norm_act` has functions with
the same names and arguments, which `BatchNormAct` uses where `kernels_for` chooses them.

Legend: B images, C channels, H x W positions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.kernels.triton_support import fused_kernels_work
from models.recompute.repeat import before_batch_norm, is_repeating

_silu_ = partial(torch.nn.functional.silu, inplace=True)
_silu_backward_into = torch.ops.aten.silu_backward.grad_input
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


def kernels_for(x: Tensor, fused_kernels: bool) -> ModuleType:
    """Module with the functions for ``x``: `fused_norm_act` if ``fused_kernels`` and Triton works, else this one."""
    if fused_kernels and fused_kernels_work(x):
        from models.kernels import fused_norm_act  # imports Triton

        if x.dtype in fused_norm_act.DTYPES:
            return fused_norm_act
    return sys.modules[__name__]


def normalise_by_batch(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running: tuple[Tensor, Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize ``x`` by its own statistics, then apply SiLU if ``silu``.

    Args:
        x_BCHW: Raw convolution output, any float dtype.
        weight_C: Scale. It and all statistics are in float32, even if ``x`` is in half precision.
        bias_C: Shift.
        running: Running mean, running variance and number of batches, updated in place; None for no update.
        momentum: Weight of the new statistics in the running ones.
        eps: Number added to the variance.
        silu: Whether to apply SiLU.

    Returns:
        Output in the shape, dtype and memory format of ``x``, mean, and variance plus ``eps``.
    """
    running_mean_C, running_var_C, num_batches = running or (None, None, None)
    if num_batches is not None:
        num_batches.add_(1)
    out, mean_C, invstd_C = torch.native_batch_norm(
        x_BCHW, weight_C, bias_C, running_mean_C, running_var_C, True, momentum, eps
    )
    return _silu_(out) if silu else out, mean_C, invstd_C.pow(-2)


def batch_statistics(
    x_BCHW: Tensor, running: tuple[Tensor, Tensor, Tensor] | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean of ``x`` and its variance plus ``eps``; for the arguments see `normalise_by_batch`."""
    channels = x_BCHW.new_ones(x_BCHW.shape[1], dtype=torch.promote_types(x_BCHW.dtype, torch.float32))
    return normalise_by_batch(x_BCHW, channels, channels, running, momentum, eps, silu=False)[1:]


def normalise_activate(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    silu: bool,
    residual_BCHW: Tensor | None = None,
    out_BCHW: Tensor | None = None,
) -> Tensor:
    """Compute ``silu((x - mean) / sqrt(variance) * weight + bias) + residual`` and write it to ``out`` if given.

    ``variance`` contains epsilon already. Without ``silu``, the activation is left out.
    """
    out = torch.native_batch_norm(x_BCHW, weight_C, bias_C, mean_C, variance_C, False, 0.0, 0.0)[0]
    out = _silu_(out) if silu else out
    out = out if residual_BCHW is None else residual_BCHW + out
    return out if out_BCHW is None else out_BCHW.copy_(out)


def backward(
    grad_BCHW: Tensor,
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    silu: bool,
    by_batch: bool,
    out_BCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, weight and bias; writes that of ``x`` to ``out`` if given.

    With ``by_batch``, the gradient also passes through the statistics, which were computed from ``x``.
    """
    if silu:
        normalised = normalise_activate(x_BCHW, weight_C, bias_C, mean_C, variance_C, silu=False)
        grad_BCHW = _silu_backward_into(grad_BCHW, normalised, grad_input=normalised)
    statistics = mean_C, variance_C, mean_C, variance_C.rsqrt()
    grad_x_BCHW, *others = _batch_norm_backward(grad_BCHW, x_BCHW, weight_C, *statistics, by_batch, 0.0, [True] * 3)
    return grad_x_BCHW if out_BCHW is None else out_BCHW.copy_(grad_x_BCHW), *others


class BatchNormAct(torch.autograd.Function):
    """BatchNorm, then SiLU if ``silu``; keeps only its input and the statistics for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        norm: Any,
        silu: bool,
        num_parts: int = 1,
        residual_BCHW: Tensor | None = None,
        fused_kernels: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Normalize by the statistics of the batch, or by the running ones if ``norm`` is in eval mode (frozen).

        The output is split along its channels into ``num_parts`` tensors. A residual requires one part.

        Raises:
            ValueError: If the statistics of the batch would come from one value per channel.
        """
        ctx.kernels = kernels_for(x_BCHW, fused_kernels)
        ctx.by_batch, ctx.silu, ctx.num_parts = norm.training, silu, num_parts
        ctx.scale_shift = weight_C, bias_C
        prepare = before_batch_norm.get()
        if prepare is not None:
            prepare(x_BCHW, partial(_statistics, x_BCHW.detach(), norm, ctx.kernels))
        if not norm.training:
            statistics = _statistics(x_BCHW, norm, ctx.kernels)
        else:
            if x_BCHW.numel() == x_BCHW.shape[1]:  # like PyTorch; the running variance would become NaN
                raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x_BCHW.shape)}")
            running = None if is_repeating.get() else (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            if num_parts == 1 and residual_BCHW is None:  # PyTorch's kernel does both in one pass
                arguments = running, norm.momentum, norm.eps, silu
                outs = ctx.kernels.normalise_by_batch(x_BCHW, weight_C, bias_C, *arguments)
                out: Tensor = outs[0]
                ctx.save_for_backward(x_BCHW, *outs[1:])
                return out
            statistics = ctx.kernels.batch_statistics(x_BCHW, running, norm.momentum, norm.eps)
        ctx.save_for_backward(x_BCHW, *statistics)
        outs = tuple(_part_of_output(ctx, part, x_BCHW, statistics, residual_BCHW) for part in range(num_parts))
        return outs if num_parts > 1 else outs[0]

    @staticmethod
    def output(ctx: Any, part: int, residual_BCHW: Tensor | None = None, out_BCHW: Tensor | None = None) -> Tensor:
        """Compute one part of the result of ``forward`` again; write it to ``out`` if given."""
        x_BCHW, *statistics = ctx.saved_tensors
        return _part_of_output(ctx, part, x_BCHW, statistics, residual_BCHW, out_BCHW)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, weight, bias and residual."""
        x_BCHW, *statistics = ctx.saved_tensors
        how = ctx.silu, ctx.by_batch
        if ctx.num_parts == 1:
            grads = ctx.kernels.backward(*grads_BCHW, x_BCHW, *ctx.scale_shift, *statistics, *how)
        else:
            grad_x_BCHW = torch.empty_like(x_BCHW)
            maps, channels = _parts(ctx, x_BCHW, grad_x_BCHW), _parts(ctx, *ctx.scale_shift, *statistics, dim=0)
            parts = [
                ctx.kernels.backward(grad, x, *numbers, *how, out)[1:]
                for grad, (x, out), numbers in zip(grads_BCHW, maps, channels, strict=True)
            ]
            grads = grad_x_BCHW, *map(torch.cat, zip(*parts, strict=True))
        wanted = zip(grads, ctx.needs_input_grad[:3], strict=True)
        grad_residual_BCHW = grads_BCHW[0] if any(ctx.needs_input_grad[6:]) else None
        return *(grad if is_wanted else None for grad, is_wanted in wanted), None, None, None, grad_residual_BCHW, None


def _statistics(x_BCHW: Tensor, norm: Any, kernels: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance with epsilon added by which ``norm`` normalises ``x``."""
    if not norm.training:
        return norm.running_mean, norm.running_var + norm.eps
    mean_C, variance_C = kernels.batch_statistics(x_BCHW, None, norm.momentum, norm.eps)
    return mean_C, variance_C


def _parts(ctx: Any, *tensors: Tensor, dim: int = 1) -> list[tuple[Tensor, ...]]:
    """Split each tensor into ``ctx.num_parts``; return for each part the pieces of all tensors."""
    return list(zip(*(tensor.chunk(ctx.num_parts, dim) for tensor in tensors), strict=True))


def _part_of_output(
    ctx: Any,
    part: int,
    x_BCHW: Tensor,
    statistics: Sequence[Tensor],
    residual_BCHW: Tensor | None = None,
    out_BCHW: Tensor | None = None,
) -> Tensor:
    (x_BCHW,) = _parts(ctx, x_BCHW)[part]
    channels = _parts(ctx, *ctx.scale_shift, *statistics, dim=0)[part]
    output: Tensor = ctx.kernels.normalise_activate(x_BCHW, *channels, ctx.silu, residual_BCHW, out_BCHW)
    return output
