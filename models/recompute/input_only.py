"""Makes max-pooling and softmax keep their input for backward, instead of what PyTorch keeps.

PyTorch keeps 8-byte indices for max-pooling, and the result for softmax, in float32 under autocast. `InputOnly`
computes both again from the input. The input of max-pooling has a recipe as a rule, so keeping it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.recompute.repeat import Surroundings


class InputOnly(torch.autograd.Function):
    """A function of one tensor that keeps only its input for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``function(x)``."""
        ctx.save_for_backward(x)
        ctx.function, ctx.surroundings = function, Surroundings(x.device.type)
        return function(x)

    @staticmethod
    def output(ctx: Any, _: int = 0, *, out_BCHW: Tensor | None = None) -> Tensor:
        """Compute the result of ``forward`` again, with a graph for backward; copy it to ``out`` if given."""
        if not hasattr(ctx, "repeated"):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with ctx.surroundings.again():
                ctx.repeated = x, ctx.function(x)
        result = ctx.repeated[1].detach()
        return result if out_BCHW is None else out_BCHW.copy_(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Run the function's own backward."""
        InputOnly.output(ctx)
        x, out = ctx.repeated
        del ctx.repeated
        return torch.autograd.grad(out, x, grad)[0], None


def keep_input_only(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``function(x, *args, **kwargs)``, keeping only ``x`` for backward; no other argument gets a gradient."""
    if not x.requires_grad:
        return function(x, *args, **kwargs)
    out: Tensor = InputOnly.apply(x, lambda x: function(x, *args, **kwargs))
    return out
