"""Faults of the machine: those that a test can have the system itself make, and memory that runs out."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FULL = os.strerror(errno.EFBIG)
"""What the system says in `full_disk`."""


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file grows beyond ``at_bytes``: writing more fails half-way, whatever library does it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class OutOfMemoryAt(TorchDispatchMode):
    """Memory runs out at one operation, counted from 0; ``only`` says which operations count."""

    def __init__(self, number: int | None, only: Callable[[Any], bool] = lambda func: True) -> None:
        super().__init__()
        self.number, self.only, self.names = number, only, []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace != "profiler" and self.only(func):
            self.names.append(func.name())
            if len(self.names) - 1 == self.number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")
        return func(*args, **(kwargs or {}))
