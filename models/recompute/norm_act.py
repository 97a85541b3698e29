"""BatchNorm + SiLU as one operation that keeps nothing but its input and a few numbers per channel.

Legend: B images, C channels, H x W positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.recompute.repeat import is_repeating

_silu_ = partial(torch.nn.functional.silu, inplace=True)
_silu_backward_into = torch.ops.aten.silu_backward.grad_input
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


def normalise_activate(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, mean_C: Tensor, variance_C: Tensor, silu: bool
) -> Tensor:
    """``silu((x - mean) / sqrt(variance) * weight + bias)``, or without SiLU: what a fused kernel will replace.

    Args:
        x_BCHW: Raw convolution output, any float dtype.
        weight_C: Scale, in float32 even if ``x`` is in half precision; so are the other three.
        bias_C: Shift.
        mean_C: Mean to subtract.
        variance_C: Variance to divide by, with epsilon added already.
        silu: Whether to activate.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``.
    """
    out = torch.native_batch_norm(x_BCHW, weight_C, bias_C, mean_C, variance_C, False, 0.0, 0.0)[0]
    return _silu_(out) if silu else out


class BatchNormAct(torch.autograd.Function):
    """BatchNorm, then SiLU if ``silu``. Keeps its input; ``output`` computes the result again."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, norm: nn.Module, silu: bool
    ) -> Tensor:
        """Normalise by the batch's statistics, or by the running ones if ``norm`` is in eval mode (frozen)."""
        ctx.scale_shift, ctx.by_batch, ctx.silu = (weight_C, bias_C), norm.training, silu
        if not norm.training:
            variance_C = norm.running_var + norm.eps
            ctx.save_for_backward(x_BCHW, norm.running_mean, variance_C, variance_C.rsqrt())
            return normalise_activate(x_BCHW, *ctx.scale_shift, norm.running_mean, variance_C, silu)
        running = (None, None)
        if not is_repeating.get():
            norm.num_batches_tracked.add_(1)
            running = norm.running_mean, norm.running_var
        out, mean_C, invstd_C = torch.native_batch_norm(
            x_BCHW, weight_C, bias_C, *running, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(x_BCHW, mean_C, invstd_C.pow(-2), invstd_C)
        return _silu_(out) if silu else out

    @staticmethod
    def output(ctx: Any) -> Tensor:
        """The result of ``forward``, computed again."""
        x_BCHW, mean_C, variance_C, _ = ctx.saved_tensors
        return normalise_activate(x_BCHW, *ctx.scale_shift, mean_C, variance_C, ctx.silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        """Through SiLU, then through BatchNorm, with PyTorch's own kernels."""
        x_BCHW, mean_C, variance_C, invstd_C = ctx.saved_tensors
        if ctx.silu:
            normalised = normalise_activate(x_BCHW, *ctx.scale_shift, mean_C, variance_C, silu=False)
            grad_BCHW = _silu_backward_into(grad_BCHW, normalised, grad_input=normalised)
        grads = _batch_norm_backward(
            grad_BCHW,
            x_BCHW,
            ctx.scale_shift[0],
            mean_C,
            variance_C,
            mean_C,
            invstd_C,
            ctx.by_batch,
            0.0,
            list(ctx.needs_input_grad[:3]),
        )
        return *grads, None, None
