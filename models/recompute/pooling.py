"""Max-pooling by `fused_pooling`, wherever `norm_act` takes its fused kernels. Only the input is kept, a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def is_fusible(module: nn.MaxPool2d) -> bool:
    """Whether an ``nn.MaxPool2d`` pools as SPPF does: odd windows at every position of the map."""
    from models.kernels.fused_pooling import MAX_KERNEL_SIZE  # only where there is Triton

    size = module.kernel_size
    if not isinstance(size, int) or size % 2 == 0 or size > MAX_KERNEL_SIZE:
        return False
    return (module.stride, module.padding, module.dilation, module.return_indices) == (1, size // 2, 1, False)


class MaxPool(torch.autograd.Function):
    """The largest value of the ``kernel_size`` x ``kernel_size`` positions around each position."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernel_size: int) -> Tensor:
        """A map of the same shape and dtype."""
        from models.kernels.fused_pooling import max_pool

        ctx.save_for_backward(x_BCHW)
        ctx.kernel_size = kernel_size
        return max_pool(x_BCHW, kernel_size)

    @staticmethod
    def output(ctx: Any, _: int = 0, *, out_BCHW: Tensor | None = None) -> Tensor:
        """The result of ``forward`` again, in ``out`` if that is given."""
        from models.kernels.fused_pooling import max_pool

        return max_pool(ctx.saved_tensors[0], ctx.kernel_size, out_BCHW)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, None]:
        """Each window's gradient goes to its largest value."""
        from models.kernels.fused_pooling import max_pool_backward

        return max_pool_backward(grad_BCHW, ctx.saved_tensors[0], ctx.kernel_size), None
