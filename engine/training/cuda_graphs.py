"""CUDA graphs: the thousands of kernels of a micro-step are recorded once, then launched all together.

A micro-step of YOLO11l launches thousands of kernels. Launching them one by one from Python can take longer than a GPU
needs to run them, and the longer the more hooks there are in backward. A recording leaves only the kernels' own time.

What is recorded is fixed: shapes, addresses, the order of kernels. So a micro-batch is copied to the place that the
recording reads, its boxes are padded with zeros, which the loss ignores, to a capacity that seldom changes, and
gradients stay where they are and are set to 0 instead of None.

**When.** A kind of micro-step (number of images, their size, capacity, recompute settings) runs in the ordinary way the
first time, so that kernels are compiled and loaded, and is recorded the second time. All recordings share one pool of
memory and one place for images, so several kinds need no more of them than the largest. A kind that is new gives both
back first: then the ordinary way has room. Validation gets them back too: see `release`.

**Which.** At most `MAX_RECORDINGS` are kept, those used last; training at many image sizes has more kinds than that,
and recording one again takes Python as long as running it would. Addresses are part of a recording, so all are dropped
when a parameter, gradient, statistic or the loss scale is not where it was.

Memory: the gradients from the first step on, a second copy of the largest micro-batch's bytes, and what the driver
needs for the kernels of `MAX_RECORDINGS` micro-steps, which the plan does not know.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.loading.batch import Batch

log = logging.getLogger(__name__)
MAX_RECORDINGS = 8
"""Recordings kept: full and last micro-batch of a window, at four image sizes."""
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
    is_synchronized = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    return next(network.parameters()).is_cuda and not is_synchronized


class RecordedMicroStep:
    """Runs micro-steps, from recordings where it can."""

    def __init__(
        self,
        micro_step: MicroStep,
        parameters: list[nn.Parameter],
        enabled: bool,
        others: Callable[[], Iterable[Tensor]] = list,
    ) -> None:
        """Record nothing yet.

        Args:
            micro_step: Changes gradients and statistics in place, and waits for nothing.
            parameters: Of the network.
            enabled: False to run everything in the ordinary way.
            others: What else it reads or changes in place, as it is now.
        """
        self.keeps_gradients = enabled
        self._micro_step = micro_step
        self._parameters = parameters
        self._others = others
        self._capacity = MIN_CAPACITY
        self._known: set[Any] = set()
        self._largest_images = 0
        self._forget()

    def _forget(self) -> None:
        self._recordings: dict[Any, Recording] = {}  # the one used last comes last
        self._addresses: list[int] = []
        self._images: Tensor | None = None
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
            self._largest_images = max(self._largest_images, micro_batch.images.numel())
            return self._micro_step(padded(micro_batch, self._capacity), scale)
        recording = self._recording(kind, micro_batch, scale)
        fill(recording.batch, micro_batch)
        recording.scale.copy_(scale)
        recording.replay()
        return recording.totals

    def release(self) -> None:
        """Give the memory of all recordings back to the device; they are made again when they are needed."""
        had_any = bool(self._recordings)
        self._forget()
        if had_any:
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.empty_cache()

    def _recording(self, kind: Any, micro_batch: Batch, scale: Tensor) -> Recording:
        """The recording of a kind of micro-step: the one that there is, if it is still true."""
        if self._recordings and list(self._addresses_now()) != self._addresses:
            log.warning(
                "a parameter, gradient, statistic or the loss scale was replaced: micro-steps are recorded anew"
            )
            self.release()
        recording = self._recordings.pop(kind, None) or self._record(micro_batch, scale.clone())
        self._recordings[kind] = recording
        if len(self._recordings) > MAX_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        return recording

    def _record(self, micro_batch: Batch, scale: Tensor) -> Recording:
        for parameter in self._parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._addresses = list(self._addresses_now())
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        if self._images is None:
            self._images = micro_batch.images.new_empty(self._largest_images)
        images = self._images.as_strided(micro_batch.images.shape, micro_batch.images.stride())
        return record(self._micro_step, padded(micro_batch, self._capacity, images), scale, self._pool)

    def _addresses_now(self) -> Iterator[int]:
        for parameter in self._parameters:
            yield parameter.data_ptr()
            yield 0 if parameter.grad is None else parameter.grad.data_ptr()
        for tensor in self._others():
            yield tensor.data_ptr()


def record(micro_step: MicroStep, batch: Batch, scale: Tensor, pool: Any) -> Recording:
    """Record a micro-step without running it."""
    graph = torch.cuda.CUDAGraph()
    # Only this thread must keep to what may be recorded: the loader's pins memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        totals = micro_step(batch, scale)
    return Recording(graph.replay, batch, scale, totals)


def padded(batch: Batch, capacity: int, images: Tensor | None = None) -> Batch:
    """A copy of a micro-batch with room for ``capacity`` boxes; those that it does not have are zeros.

    Args:
        batch: The micro-batch.
        capacity: At least as many as it has.
        images: The place for its images; a new one by default.
    """
    boxes = batch.boxes_xyxy_px
    copy = Batch(
        images=torch.empty_like(batch.images) if images is None else images,
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
