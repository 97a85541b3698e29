"""Concatenation and upsampling of maps by `fused_copies`, wherever `norm_act` takes its fused kernels.

Both keep nothing for backward, as PyTorch's own do; `recipes` knows how to make their results again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from models.recompute import norm_act


def is_fused(x_BCHW: Tensor, fused_kernels: bool) -> bool:
    """Whether operations on a map take the fused kernels."""
    return norm_act.kernels_for(x_BCHW, fused_kernels) is not norm_act


def place(x_BCHW: Tensor, out_BCHW: Tensor) -> None:
    """Copy a map, where kernels are fused."""
    from models.kernels import fused_copies  # only where there is Triton

    fused_copies.place(x_BCHW, out_BCHW)


def upsample(x_BCHW: Tensor, scale: int) -> Tensor:
    """Every value of a map becomes a square of ``scale`` x ``scale``, where kernels are fused."""
    from models.kernels import fused_copies

    return fused_copies.upsample(x_BCHW, scale)


class Concatenate(torch.autograd.Function):
    """Maps of one dtype joined along their channels, by `fused_copies`."""

    @staticmethod
    def forward(ctx: Any, *parts_BCHW: Tensor) -> Tensor:
        """All parts in one map."""
        from models.kernels import fused_copies  # only where there is Triton

        ctx.num_channels = [part.shape[1] for part in parts_BCHW]
        out = fused_copies.concatenate(parts_BCHW)
        ctx.like = out.shape, out.dtype, out.device, fused_copies.memory_format_of(out)
        return out

    @staticmethod
    def output(ctx: Any, parts: Sequence[Callable[[Tensor], object]]) -> Tensor:
        """The result of ``forward`` again; each part gets its place, to fill it."""
        shape, dtype, device, memory_format = ctx.like
        out = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
        for fill, target in zip(parts, out.split(ctx.num_channels, 1), strict=True):
            fill(target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Views, one for each part."""
        return tuple(torch.split(grad_BCHW, ctx.num_channels, 1))


class Upsample(torch.autograd.Function):
    """`upsample`."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, scale: int) -> Tensor:
        """A larger map."""
        ctx.shape, ctx.scale = x_BCHW.shape, scale
        return upsample(x_BCHW, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, None]:
        """Sums of squares of ``scale`` x ``scale``."""
        return torch.ops.aten.upsample_nearest2d_backward(grad_BCHW, grad_BCHW.shape[2:], ctx.shape), None


class FusedConcatenation(TorchFunctionMode):
    """While active, ``torch.cat`` of maps along their channels is `Concatenate`, where kernels are fused."""

    def __init__(self, fused_kernels: bool) -> None:
        super().__init__()
        self.fused_kernels = fused_kernels

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        """Divert it; leave all other operators alone."""
        if func is torch.cat and not kwargs and len(args) == 2 and args[1] == 1:
            parts = args[0]
            if (
                parts[0].dim() == 4
                and len({part.dtype for part in parts}) == 1
                and is_fused(parts[0], self.fused_kernels)
            ):
                return Concatenate.apply(*parts)
        return func(*args, **(kwargs or {}))
