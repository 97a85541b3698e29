"""BatchNorm statistics as a transaction: a skipped window must leave no trace in the network.

Parameters change only in the optimizer's step. The running statistics change in every forward pass, and one NaN in them
spoils every later validation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.training.accumulation import all_reduce_sum
from engine.training.ranks import is_parallel
from models.network import batch_norms


class BatchStatistics:
    """Saves the running statistics and batch counters of a network and restores them if a window fails.

    Memory: one copy of the statistics, 0.4 MiB for YOLO11l.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms: list[Any] = list(batch_norms(network))
        self._saved: list[Tensor] = []

    def save(self) -> None:
        """Save the current statistics."""
        self._saved = []  # if memory runs out in the next line, `restore` must change nothing
        self._saved = [_flatten(tensors) for tensors in self._tensors_by_kind()]

    def restore(self) -> None:
        """Restore the saved statistics without allocating memory."""
        for tensors, saved in zip(self._tensors_by_kind(), self._saved, strict=False):
            _unflatten(saved, tensors)

    def restore_unless(self, good: Tensor) -> None:
        """Restore the saved statistics if ``good`` (scalar bool on the device) is false, without a host sync."""
        for tensors, saved in zip(self._tensors_by_kind(), self._saved, strict=True):
            _unflatten(torch.where(good, _flatten(tensors), saved), tensors)

    @property
    def needs_several_values(self) -> bool:
        """Whether a BatchNorm computes statistics from the micro-batches of this rank alone."""
        return any(norm.training and not isinstance(norm, nn.SyncBatchNorm) for norm in self._norms)

    def are_finite(self) -> Tensor:
        """Scalar bool on the device: False if a running statistic is inf or NaN."""
        return _flatten(self._statistics()).isfinite().all()

    def average_over_ranks(self) -> None:
        """Replace the running statistics of every rank by their mean, so that all ranks have the same network."""
        if not is_parallel() or not any(norm.training for norm in self._norms):
            return
        tensors = self._statistics()
        all_reduce_sum(tensors)
        torch._foreach_div_(tensors, dist.get_world_size())

    def _tensors_by_kind(self) -> list[list[Tensor]]:
        return [self._statistics(), [norm.num_batches_tracked for norm in self._norms]]

    def _statistics(self) -> list[Tensor]:
        return [norm.running_mean for norm in self._norms] + [norm.running_var for norm in self._norms]


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])
