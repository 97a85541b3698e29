"""Runs a part of the forward pass a second time, during backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch.overrides import _get_current_function_mode_stack

is_repeating: ContextVar[bool] = ContextVar("is_repeating", default=False)
"""True while a forward pass is repeated. Counters of batches must not count this batch again."""


class Surroundings:
    """The autocast settings and function modes of a forward pass.

    Backward runs without them, on CUDA even in another thread.
    """

    def __init__(self, device_type: str) -> None:
        """Store the present settings for operators on ``device_type``."""
        self._function_modes = _get_current_function_mode_stack()
        self._autocast: AbstractContextManager[object] = nullcontext()
        if torch.amp.is_autocast_available(device_type):
            self._autocast = torch.autocast(
                device_type,
                dtype=torch.get_autocast_dtype(device_type),
                enabled=torch.is_autocast_enabled(device_type),
                cache_enabled=torch.is_autocast_cache_enabled(),
            )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore the settings, with gradients on and ``is_repeating`` set."""
        token = is_repeating.set(True)
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self._autocast)
                for mode in self._function_modes:
                    stack.enter_context(mode)
                yield
        finally:
            is_repeating.reset(token)
