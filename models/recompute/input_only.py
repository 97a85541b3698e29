"""Cheap operators that keep their input instead of what their own backward would keep.

Max-pooling would keep 8-byte indices, softmax its result (in float32 under autocast). Both are computed
again from their input, which for max-pooling is a recipe and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from models.recompute.repeat import Surroundings

DIVERTED = (torch.Tensor.softmax, torch.nn.functional.max_pool2d)


class InputOnly(torch.autograd.Function):
    """Any function of one tensor. Keeps its input; ``output`` computes the result again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function(x)``."""
        ctx.save_for_backward(x)
        ctx.function, ctx.surroundings = function, Surroundings(x.device.type)
        return function(x)

    @staticmethod
    def output(ctx: Any, _: int = 0, *, out_BCHW: Tensor | None = None) -> Tensor:
        """The result of ``forward``, computed again, this time with the small graph that backward needs.

        It is copied to ``out`` if that is given.
        """
        if not hasattr(ctx, "repeated"):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with ctx.surroundings.again():
                ctx.repeated = x, ctx.function(x)
        result = ctx.repeated[1].detach()
        return result if out_BCHW is None else out_BCHW.copy_(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The function's own backward."""
        InputOnly.output(ctx)
        x, out = ctx.repeated
        del ctx.repeated
        return torch.autograd.grad(out, x, grad)[0], None


class KeepInputsOnly(TorchFunctionMode):
    """While active, the operators in ``DIVERTED`` keep their input only."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        """Divert them; leave all other operators alone."""
        if func in DIVERTED and args[0].requires_grad:
            x, *rest = args
            return InputOnly.apply(x, lambda y: func(y, *rest, **(kwargs or {})))
        return func(*args, **(kwargs or {}))
