"""Replaces operators inside layers that recompute; results and gradients stay the same.

Concatenation and max-pooling use fused kernels where `copies.is_fused` holds. Other max-pooling and softmax keep only
their input: see `input_only`. The added number and the padding value are stored for `recipes`, because autograd keeps
neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.recompute.copies import Concatenate, is_fused
from models.recompute.input_only import keep_input_only
from models.recompute.pooling import MaxPool, is_fusible
from models.recompute.recipes import note_number

_Operator = Callable[..., Tensor]


class Replacements(TorchFunctionMode):
    """Mode in which the operators in ``_REPLACEMENTS`` run their replacements."""

    def __init__(self, fused_kernels: bool) -> None:
        super().__init__()
        self.fused_kernels = fused_kernels

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run the replacement of ``func``, or ``func`` if it has none."""
        replacement = _REPLACEMENTS.get(func) if args else None
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, self.fused_kernels, *args, **(kwargs or {}))


def _concatenate(cat: _Operator, fused: bool, parts: Any, *args: Any, **kwargs: Any) -> Tensor:
    along_channels = args == (1,) and not kwargs and parts[0].dim() == 4
    if along_channels and len({part.dtype for part in parts}) == 1 and is_fused(parts[0], fused):
        out: Tensor = Concatenate.apply(*parts)
        return out
    return cat(parts, *args, **kwargs)


def _max_pool(pool: _Operator, fused: bool, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if is_fused(x, fused) and is_fusible(*args, **kwargs):
        out: Tensor = MaxPool.apply(x, args[0])
        return out
    return keep_input_only(pool, x, *args, **kwargs)


def _softmax(softmax: _Operator, _: bool, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return keep_input_only(softmax, x, *args, **kwargs)


def _add(add: _Operator, _: bool, *args: Any, **kwargs: Any) -> Tensor:
    out = add(*args, **kwargs)
    for number in args:
        if isinstance(number, int | float):
            note_number(out, number)
    return out


def _pad(pad: _Operator, _: bool, x: Tensor, sizes: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    out = pad(x, sizes, mode, value)
    if mode == "constant":
        note_number(out, value or 0)
    return out


_REPLACEMENTS: dict[Callable[..., object], _Operator] = {
    torch.cat: _concatenate,
    functional.max_pool2d: _max_pool,
    functional.softmax: _softmax,
    torch.softmax: _softmax,
    torch.Tensor.softmax: _softmax,
    torch.add: _add,
    torch.Tensor.add: _add,
    functional.pad: _pad,
}
