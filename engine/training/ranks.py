"""The processes of a run agree on the host, over gloo: without waiting for a device, and knowing when one has gone.

Every rank asks before and after each window, so a rank that dies is noticed within a step: its connections close. One
that hangs, or a network that is cut, is noticed after `TIMEOUT`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import TrainingError

Value = TypeVar("Value")
TIMEOUT = timedelta(minutes=10)
"""Longer than anything that the first rank does alone, such as drawing pictures."""


class Ranks:
    """What the processes of a run know together; in a single process, what it knows itself."""

    def __init__(self) -> None:
        """Join the group on the host; all ranks must do so at the same point."""
        self.group: Any = _host_group(dist.group.WORLD) if is_parallel() else None

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; all must ask.

        Raises:
            TrainingError: If a rank has gone.
        """
        if self.group is None:
            return flag
        flags = torch.tensor([int(flag)])
        with all_present():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over the ranks, on the host.

        Raises:
            TrainingError: If a rank has gone.
        """
        values = values.cpu()
        if self.group is None:
            return values
        values = values.clone()
        with all_present():
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Value) -> list[Value]:
        """A plain value of every rank, in their order.

        Raises:
            TrainingError: If a rank has gone.
        """
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        with all_present():
            dist.all_gather_object(values, value, group=self.group)
        return values


def is_parallel() -> bool:
    """Whether this run has several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def all_present() -> Iterator[None]:
    """Turn the network's error into one that says what has happened and what to do."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"another process of this run has ended or does not answer ({reason}): its own message says why; then "
            "resume with the same command and --ckpt_path of its last.ckpt"
        ) from error


@cache
def _host_group(world: Any) -> Any:
    """One group for all who ask; gloo takes tensors on the host, which NCCL does not."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)
