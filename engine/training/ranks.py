"""Communication between the ranks of a run on the host, over gloo, which never waits for a device.

Every rank communicates before and after each window. A rank that dies closes its connections, so the others notice it
within a step. They notice a rank that hangs, or a broken network, after `TIMEOUT`.
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
"""Longer than everything that the first rank does alone, such as drawing pictures."""


class Ranks:
    """Combines values of all ranks on the host; in a single process, returns them unchanged.

    Every method raises a TrainingError if a rank has ended or does not answer.
    """

    def __init__(self) -> None:
        """Join the group on the host; all ranks must join at the same point."""
        self.group: Any = _host_group(dist.group.WORLD) if is_parallel() else None

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; all ranks must call this."""
        if self.group is None:
            return flag
        flags = torch.tensor([int(flag)])
        with all_present():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, on the host."""
        values = values.cpu()
        if self.group is None:
            return values
        values = values.clone()
        with all_present():
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in the order of the ranks; plain values only."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        with all_present():
            dist.all_gather_object(values, value, group=self.group)
        return values


def is_parallel() -> bool:
    """Whether this run has several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def all_present() -> Iterator[None]:
    """Turn a failed communication into an error that says what happened and what to do."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"another process of this run has ended or does not answer ({reason}). Read the message of that process, "
            "then resume with the same command and --ckpt_path of the run's last.ckpt."
        ) from error


@cache
def _host_group(world: Any) -> Any:
    """One group for all callers; gloo accepts tensors on the host, NCCL does not."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)
