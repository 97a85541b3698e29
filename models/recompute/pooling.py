"""Max-pooling by the kernels of `fused_pooling`, where `norm_act` uses fused kernels; keeps only its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def is_fusible(
    kernel_size: object,
    stride: object = None,
    padding: object = 0,
    dilation: object = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    """Whether `fused_pooling` can do the pooling that ``torch.nn.functional.max_pool2d`` does with these arguments.

    It can with an odd kernel size, stride 1 and a result as large as the map.
    """
    from models.kernels.fused_pooling import MAX_KERNEL_SIZE  # imports Triton

    if not isinstance(kernel_size, int) or kernel_size % 2 == 0 or kernel_size > MAX_KERNEL_SIZE:
        return False
    return (stride, padding, dilation, return_indices) == (1, kernel_size // 2, 1, False)


class MaxPool(torch.autograd.Function):
    """Largest value of the ``kernel_size`` x ``kernel_size`` positions around each position."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernel_size: int) -> Tensor:
        """Return a map of the same shape and dtype."""
        from models.kernels.fused_pooling import max_pool

        ctx.save_for_backward(x_BCHW)
        ctx.kernel_size = kernel_size
        return max_pool(x_BCHW, kernel_size)

    @staticmethod
    def output(ctx: Any, _: int = 0, *, out_BCHW: Tensor | None = None) -> Tensor:
        """Compute the result of ``forward`` again; write it to ``out`` if given."""
        from models.kernels.fused_pooling import max_pool

        return max_pool(ctx.saved_tensors[0], ctx.kernel_size, out_BCHW)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient of each window to the largest value of the window."""
        from models.kernels.fused_pooling import max_pool_backward

        return max_pool_backward(grad_BCHW, ctx.saved_tensors[0], ctx.kernel_size), None
