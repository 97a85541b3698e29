"""Micro-batches on their way to the device: while one is computed with, the next one is copied beside it.

The window lies in pinned host memory, so on a GPU a copy needs neither the host nor the processors, only a stream of
its own. Images travel as bytes.

Memory: one more micro-batch of 3 * image_size**2 bytes an image, which the plan counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from data.loading.batch import Batch


def copied_ahead(micro_batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The micro-batches on ``device``, in order, each yielded when the copy of the next one has been queued.

    Whoever takes a micro-batch holds the only reference to it.
    """
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    ahead: list[Batch] = []
    for micro_batch in micro_batches:
        _wait_for(copies)  # for the copy before this one
        ahead.append(_copy(micro_batch, device, copies))
        if len(ahead) == 2:
            yield ahead.pop(0)
    _wait_for(copies)
    if ahead:  # a rank may have no image of a window
        yield ahead.pop()


def _copy(micro_batch: Batch, device: torch.device, copies: torch.cuda.Stream | None) -> Batch:
    if copies is None:
        return micro_batch.to(device)
    with torch.cuda.stream(copies):
        copy = micro_batch.to(device, non_blocking=True)
    for tensor in copy.tensors:
        tensor.record_stream(torch.cuda.current_stream(device))  # the allocator must not reuse it before that is done
    return copy


def _wait_for(copies: torch.cuda.Stream | None) -> None:
    """Let the device, not the host, wait for the copies queued so far."""
    if copies is not None:
        torch.cuda.current_stream(copies.device).wait_stream(copies)
