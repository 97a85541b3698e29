"""Faults of the machine that a test can have the system itself make."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

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
