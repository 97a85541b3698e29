"""CUDA graphs: capture the kernels of a micro-step once, then replay them with one launch.

A micro-step of YOLO11l launches thousands of kernels. Launching them one by one from Python can take longer than the
GPU needs to run them. A replay costs only the time of the kernels.

A captured graph has fixed shapes, addresses and kernels. Therefore

* each micro-batch is copied into the static buffers that its graph reads;
* boxes are padded with zeros, which the loss ignores, to a capacity that seldom changes;
* gradients keep their addresses: they are set to 0, not to None.

**When.** A kind of micro-step is one combination of number of images, image size, capacity and recompute settings. Its
first run launches the kernels one by one, which compiles and loads them. Its second run captures them. All graphs share
one memory pool and one buffer for images, so they need no more than the largest kind alone. The first run of a new kind
and every validation release both: see `CapturedMicroStep.release`.

**Which.** `MAX_CAPTURED_GRAPHS` graphs are kept, those used last: training at many image sizes has more kinds, and a
capture takes as long as launching the kernels. All graphs are dropped when a tensor that they use has moved.

Memory: the gradients from the first step on, one more copy of the largest micro-batch, and what the driver needs for
the kernels of all kept graphs. The plan does not know the last part.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data.loading.batch import Batch

log = logging.getLogger(__name__)
MAX_CAPTURED_GRAPHS = 8
"""The full and the last micro-batch of a window, at four image sizes."""
MIN_CAPACITY = 64
"""Boxes for which every captured graph has room."""
MicroStep = Callable[[Batch, Tensor], Tensor]
"""Forward and backward pass of a micro-batch, given the provisional scale; returns the totals of its loss."""


class CapturedGraph(NamedTuple):
    """A captured micro-step: fill ``batch`` and ``scale``, call ``replay``, read ``totals``."""

    replay: Callable[[], None]
    batch: Batch
    scale: Tensor
    totals: Tensor


def can_capture(network: nn.Module) -> bool:
    """Whether the micro-steps of a network can be captured: on a GPU, without communication between ranks."""
    is_synchronized = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    return next(network.parameters()).is_cuda and not is_synchronized


class CapturedMicroStep:
    """Runs micro-steps and replays captured graphs where possible."""

    def __init__(
        self,
        micro_step: MicroStep,
        parameters: list[nn.Parameter],
        enabled: bool,
        other_tensors: Callable[[], Iterable[Tensor]] = list,
    ) -> None:
        """Capture nothing yet; if not ``enabled``, never capture.

        ``micro_step`` must change gradients and statistics in place and never wait for the device. ``other_tensors``
        returns what it reads or changes in place beside the network's ``parameters``.
        """
        self.keeps_gradients = enabled
        self._micro_step = micro_step
        self._parameters = parameters
        self._other_tensors = other_tensors
        self._capacity = MIN_CAPACITY
        self._known_kinds: set[Hashable] = set()
        self._largest_images = 0
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[Hashable, CapturedGraph] = {}  # the one used last comes last
        self._addresses: list[int] = []
        self._images: Tensor | None = None
        self._pool: Any = None

    def run(self, micro_batch: Batch, scale: Tensor, settings: Hashable) -> Tensor:
        """Run one micro-step and return its totals, which the next run may overwrite.

        ``micro_batch`` and the provisional ``scale`` are on the device; the kernels depend on ``settings``.
        """
        if not self.keeps_gradients:
            return self._micro_step(micro_batch, scale)
        while self._capacity < len(micro_batch.classes):
            self._capacity *= 2
        kind = micro_batch.images.shape, self._capacity, settings
        if kind not in self._known_kinds:
            self.release()
            self._known_kinds.add(kind)
            self._largest_images = max(self._largest_images, micro_batch.images.numel())
            return self._micro_step(padded(micro_batch, self._capacity), scale)
        graph = self._graph(kind, micro_batch, scale)
        fill(graph.batch, micro_batch)
        graph.scale.copy_(scale)
        graph.replay()
        return graph.totals

    def release(self) -> None:
        """Return the memory of all captured graphs to the device; later runs capture them again."""
        had_any = bool(self._graphs)
        self._forget()
        if had_any:
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.empty_cache()

    def _graph(self, kind: Hashable, micro_batch: Batch, scale: Tensor) -> CapturedGraph:
        """The captured graph of a kind of micro-step: the stored one if its addresses are still valid."""
        if self._graphs and self._current_addresses() != self._addresses:
            log.warning("a parameter, gradient, statistic or the loss scale was replaced: capturing micro-steps again")
            self.release()
        graph = self._graphs.pop(kind, None) or self._capture(micro_batch, scale.clone())
        self._graphs[kind] = graph
        if len(self._graphs) > MAX_CAPTURED_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def _capture(self, micro_batch: Batch, scale: Tensor) -> CapturedGraph:
        for parameter in self._parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._addresses = self._current_addresses()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        if self._images is None:
            self._images = micro_batch.images.new_empty(self._largest_images)
        images = self._images.as_strided(micro_batch.images.shape, micro_batch.images.stride())
        return capture(self._micro_step, padded(micro_batch, self._capacity, images), scale, self._pool)

    def _current_addresses(self) -> list[int]:
        gradients = [0 if parameter.grad is None else parameter.grad.data_ptr() for parameter in self._parameters]
        return gradients + [tensor.data_ptr() for tensor in (*self._parameters, *self._other_tensors())]


def capture(micro_step: MicroStep, batch: Batch, scale: Tensor, pool: Any) -> CapturedGraph:
    """Capture the kernels of a micro-step without running them."""
    graph = torch.cuda.CUDAGraph()
    # Check this thread alone: the loader's thread pins memory at the same time.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        totals = micro_step(batch, scale)
    return CapturedGraph(graph.replay, batch, scale, totals)


def padded(batch: Batch, capacity: int, images: Tensor | None = None) -> Batch:
    """Copy a micro-batch into buffers with room for ``capacity`` boxes, of which the unused ones are zeros.

    ``images`` is the buffer for its images; by default it is new.
    """
    boxes = batch.boxes_xyxy_px
    buffers = Batch(
        images=torch.empty_like(batch.images) if images is None else images,
        boxes_xyxy_px=boxes.new_empty(capacity, 4),
        classes=batch.classes.new_empty(capacity),
        image_index=batch.image_index.new_empty(capacity),
        names=batch.names,
    )
    fill(buffers, batch)
    return buffers


def fill(buffers: Batch, batch: Batch) -> None:
    """Copy a micro-batch into buffers made by `padded`."""
    num_boxes = len(batch.classes)
    buffers.images.copy_(batch.images)
    pairs = (
        (buffers.boxes_xyxy_px, batch.boxes_xyxy_px),
        (buffers.classes, batch.classes),
        (buffers.image_index, batch.image_index),
    )
    for target, source in pairs:
        target[:num_boxes] = source
        target[num_boxes:] = 0
