"""CUDA graphs: the thousands of kernels of a micro-step are recorded once, then launched all together.

A micro-step of YOLO11l launches thousands of kernels. Launching them one by one from Python can take longer than a GPU
needs to run them, and the longer the more hooks there are in backward. A recording leaves only the kernels' own time.

What is recorded is fixed: shapes, addresses, the order of kernels. So a micro-batch is copied to the place that the
recording reads, its boxes are padded with zeros, which the loss ignores, to a capacity that seldom changes, and
gradients stay where they are and are set to 0 instead of None.

**When.** A kind of micro-step (number of images, their size, capacity, recompute settings) runs in the ordinary way the
first time, so that kernels are compiled and loaded, and is recorded the second time. All recordings share one pool of
memory, so several kinds need no more of it than the largest. A kind that is new gives the pool back first: then the
ordinary way has room. Validation gets it back too: see `release`.

Memory: the gradients from the first step on, and a second copy of the micro-batch's bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.batch import Batch

MIN_CAPACITY = 64
"""Boxes that every recording has room for."""
MicroStep = Callable[[Batch, Tensor], Tensor]
"""Forward and backward pass of a micro-batch, at a provisional scale; returns its totals."""


class Recording(NamedTuple):
    """A recorded micro-step: fill ``batch`` and ``scale``, call ``replay``, read ``totals``."""

    replay: Callable[[], None]
    batch: Batch
    scale: Tensor
    totals: Tensor


def can_record(network: nn.Module) -> bool:
    """Whether the micro-steps of a network can be recorded: on a GPU, without talk between processes."""
    is_synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    return next(network.parameters()).is_cuda and not is_synchronised


class RecordedMicroStep:
    """Runs micro-steps, from recordings where it can."""

    def __init__(self, micro_step: MicroStep, parameters: list[nn.Parameter], enabled: bool) -> None:
        """Record nothing yet.

        Args:
            micro_step: Changes gradients and statistics in place, and waits for nothing.
            parameters: Of the network.
            enabled: False to run everything in the ordinary way.
        """
        self.keeps_gradients = enabled
        self._micro_step = micro_step
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._capacity = MIN_CAPACITY
        self._known: set[Any] = set()
        self._recordings: dict[Any, Recording] = {}
        self._pool: Any = None

    def run(self, micro_batch: Batch, scale: Tensor, settings: object) -> Tensor:
        """Run one micro-step.

        Args:
            micro_batch: On the device.
            scale: Provisional scale, a scalar on the device.
            settings: What else the kernels depend on.

        Returns:
            Its totals; they are overwritten by the next run.
        """
        if not self.keeps_gradients:
            return self._micro_step(micro_batch, scale)
        while self._capacity < len(micro_batch.classes):
            self._capacity *= 2
        kind = micro_batch.images.shape, self._capacity, settings
        if kind not in self._known:
            self.release()
            self._known.add(kind)
            return self._micro_step(padded(micro_batch, self._capacity), scale)
        if kind not in self._recordings:
            self._recordings[kind] = self._record(padded(micro_batch, self._capacity), scale.clone())
        recording = self._recordings[kind]
        fill(recording.batch, micro_batch)
        recording.scale.copy_(scale)
        recording.replay()
        return recording.totals

    def release(self) -> None:
        """Give the memory of all recordings back to the device; they are made again when they are needed."""
        if self._recordings:
            self._recordings.clear()
            self._pool = None
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.empty_cache()

    def _record(self, batch: Batch, scale: Tensor) -> Recording:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return record(self._micro_step, batch, scale, self._pool)


def record(micro_step: MicroStep, batch: Batch, scale: Tensor, pool: Any) -> Recording:
    """Record a micro-step without running it."""
    graph = torch.cuda.CUDAGraph()
    # Only this thread must keep to what may be recorded: the loader's pins memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        totals = micro_step(batch, scale)
    return Recording(graph.replay, batch, scale, totals)


def padded(batch: Batch, capacity: int) -> Batch:
    """A copy of a micro-batch with room for ``capacity`` boxes; those that it does not have are zeros."""
    boxes = batch.boxes_xyxy_px
    copy = Batch(
        images=torch.empty_like(batch.images),
        boxes_xyxy_px=boxes.new_empty(capacity, 4),
        classes=batch.classes.new_empty(capacity),
        image_index=batch.image_index.new_empty(capacity),
        names=batch.names,
    )
    fill(copy, batch)
    return copy


def fill(place: Batch, batch: Batch) -> None:
    """Copy a micro-batch to a place made by `padded`."""
    num_boxes = len(batch.classes)
    place.images.copy_(batch.images)
    pairs = (
        (place.boxes_xyxy_px, batch.boxes_xyxy_px),
        (place.classes, batch.classes),
        (place.image_index, batch.image_index),
    )
    for target, source in pairs:
        target[:num_boxes] = source
        target[num_boxes:] = 0
