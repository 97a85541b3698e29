"""Copies the next micro-batch to the device while the device computes with the current one.

The window lies in pinned host memory, so a GPU copies it on a stream of its own, without the host. Images are copied as
bytes.

Memory: one more micro-batch of 3 * image_size**2 bytes per image, which the plan counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from data.loading.batch import Batch


def copied_ahead(micro_batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the micro-batches on ``device`` in order, each one after the copy of the next one was queued.

    The caller holds the only reference to a yielded micro-batch.
    """
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    ahead: list[Batch] = []
    for micro_batch in micro_batches:
        _wait_for(copies)  # for the previous copy
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
        tensor.record_stream(torch.cuda.current_stream(device))  # the allocator must not reuse it earlier
    return copy


def _wait_for(copies: torch.cuda.Stream | None) -> None:
    """Make the device, not the host, wait for the copies queued so far."""
    if copies is not None:
        torch.cuda.current_stream(copies.device).wait_stream(copies)
