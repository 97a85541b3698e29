"""The ring: blocks of shared memory in which a worker makes windows, and which it uses again.

The system clears new shared memory page by page, which takes a fifth of a worker's time. Each worker therefore has some
blocks of its own. It sends a window as the number of its block. The receiving process uses the block in place. It marks
the block as free when the last tensor on it is gone. Code that keeps a batch, or a part of it, sees no change. If a
worker finds no free block, it takes new shared memory. No process ever waits for a block.

Forked workers inherit the blocks without a name (`data.loading.shared`): the blocks are not in /dev/shm.
"""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from data.loading.batch import Batch, empty_images
from data.loading.dataset import WindowDataset
from data.loading.sampler import SampleKey
from data.loading.shared import SharedBlock

PAGE_BYTES = 4096

# Unpickling reaches only module names; torch unpickles and pins a window in a thread that has no other way to its ring.
_rings: weakref.WeakValueDictionary[int, WindowRing] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def blocks_per_worker(prefetch: int) -> int:
    """Blocks for the windows that a worker makes ahead, the one in use, and one for code that keeps two."""
    return prefetch + 2


class WindowRing:
    """The blocks of one loader's workers. The receiving process makes it before the workers start."""

    def __init__(self, num_workers: int, blocks_per_worker: int, block_bytes: int) -> None:
        """Reserve the blocks. Only used blocks take memory, except in /dev/shm, where all do."""
        self.blocks_per_worker = blocks_per_worker
        self.block_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        self._blocks = SharedBlock(num_workers * blocks_per_worker * self.block_bytes)
        self._is_taken = SharedBlock(num_workers * blocks_per_worker)
        self.number = next(_numbers)
        _rings[self.number] = self

    def empty(self, num_images: int, size_hw: tuple[int, int]) -> Tensor:
        """As `empty_images`, in a free block of this worker if there is one."""
        shape = (num_images, 3, *size_hw)
        worker = get_worker_info()
        first = (worker.id if worker else 0) * self.blocks_per_worker
        mine = self._is_taken.array[first : first + self.blocks_per_worker]
        if num_images == 0 or mine.all() or math.prod(shape) > self.block_bytes or not self._blocks.is_shared:
            return empty_images(num_images, size_hw)
        block = first + int(mine.argmin())
        self._is_taken.array[block] = 1
        return torch.from_numpy(self._view(block, shape))

    def sent(self, batch: Batch) -> Batch | SentWindow:
        """What a worker sends for a window: the number of its block, or the window itself if it lies elsewhere."""
        block, offset = divmod(batch.images.data_ptr() - self._blocks.array.ctypes.data, self.block_bytes)
        if offset or not 0 <= block < len(self._is_taken.array):
            return batch
        without_images = replace(batch, images=torch.empty(0, dtype=torch.uint8))
        return SentWindow(self.number, block, tuple(batch.images.shape), without_images)

    def open(self, block: int, shape: tuple[int, ...]) -> Tensor:
        """The images in a block, uint8 of ``shape``; the block is free when the last tensor on it is gone."""
        view = self._view(block, shape)
        weakref.finalize(view, self._is_taken.array.__setitem__, block, 0).atexit = False
        return torch.from_numpy(view)  # all views share its storage, which keeps the array

    def _view(self, block: int, shape: tuple[int, ...]) -> np.ndarray:
        start = block * self.block_bytes
        return self._blocks.array[start : start + math.prod(shape)].reshape(shape)


@dataclass
class SentWindow:
    """A window on its way from a worker; unpickling it gives the `Batch`."""

    ring: int
    block: int
    shape: tuple[int, ...]
    batch: Batch
    """Everything but the images."""

    def __reduce__(self) -> tuple[object, ...]:
        return _receive, (self.ring, self.block, self.shape, self.batch)


def _receive(ring: int, block: int, shape: tuple[int, ...], batch: Batch) -> Batch:
    batch.images = _rings[ring].open(block, shape)
    return batch


class RingDataset(Dataset[Any]):
    """A data set that makes its windows in a ring."""

    def __init__(self, dataset: WindowDataset, ring: WindowRing) -> None:
        self.dataset = dataset
        self.ring = ring

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[SampleKey]) -> Batch | SentWindow:
        """Make a window at once, in a worker."""
        return self.ring.sent(self.dataset.__getitems__(keys, self.ring.empty))
