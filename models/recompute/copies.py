"""Concatenation and upsampling by the kernels of `fused_copies`, where `norm_act` uses fused kernels.

Both keep nothing for backward, like those of PyTorch. `recipes` can compute their results again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.recompute import norm_act


def is_fused(x_BCHW: Tensor, fused_kernels: bool) -> bool:
    """Whether operations on this map use fused kernels."""
    return norm_act.kernels_for(x_BCHW, fused_kernels) is not norm_act


def place(x_BCHW: Tensor, out_BCHW: Tensor) -> None:
    """Copy a map for which `is_fused` holds to ``out``."""
    from models.kernels import fused_copies  # imports Triton

    fused_copies.place(x_BCHW, out_BCHW)


def upsample(x_BCHW: Tensor, scale: int) -> Tensor:
    """Enlarge a map for which `is_fused` holds: each value becomes a square of ``scale`` x ``scale``."""
    from models.kernels import fused_copies

    return fused_copies.upsample(x_BCHW, scale)


class Concatenate(torch.autograd.Function):
    """Concatenation of maps of one dtype along their channels, by `fused_copies`."""

    @staticmethod
    def forward(ctx: Any, *parts_BCHW: Tensor) -> Tensor:
        """Return all parts in one map."""
        from models.kernels import fused_copies

        ctx.num_channels = [part.shape[1] for part in parts_BCHW]
        out = fused_copies.concatenate(parts_BCHW)
        ctx.like = out.shape, out.dtype, out.device, fused_copies.memory_format_of(out)
        return out

    @staticmethod
    def output(ctx: Any, parts: Sequence[Callable[[Tensor], object]]) -> Tensor:
        """Compute the result of ``forward`` again; each function of ``parts`` writes its part to the given place."""
        shape, dtype, device, memory_format = ctx.like
        out = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
        for fill, target in zip(parts, out.split(ctx.num_channels, 1), strict=True):
            fill(target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return a view of the gradient for each part."""
        return tuple(torch.split(grad_BCHW, ctx.num_channels, 1))


class Upsample(torch.autograd.Function):
    """`upsample` with a gradient."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, scale: int) -> Tensor:
        """Return the enlarged map."""
        ctx.shape, ctx.scale = x_BCHW.shape, scale
        return upsample(x_BCHW, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, None]:
        """Return the gradient's sum over each square of ``scale`` x ``scale``."""
        return torch.ops.aten.upsample_nearest2d_backward(grad_BCHW, grad_BCHW.shape[2:], ctx.shape), None
