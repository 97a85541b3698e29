"""Builds the DataLoaders, whose items are `Batch` objects of whole windows."""

from __future__ import annotations

import atexit
import ctypes
import signal
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.loading.batch import Batch
from data.loading.dataset import TrainDataset, ValidationDataset, WindowDataset
from data.loading.rectangles import RectangleSampler
from data.loading.ring import RingDataset, WindowRing, blocks_per_worker
from data.loading.sampler import STRIDE_PX, WindowSampler, image_sizes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 * 2**20  # the largest value that glibc accepts


def build_train_loader(
    dataset: TrainDataset,
    batch_size: int,
    num_workers: int = 0,
    *,
    epoch: int = 0,
    start_window: int = 0,
    num_replicas: int = 1,
    rank: int = 0,
    prefetch: int = 2,
    repeats: np.ndarray | None = None,
    multi_scale: float = 0.0,
    stride_px: int = STRIDE_PX,
) -> DataLoader[Batch]:
    """Shuffled windows of augmented images.

    Args:
        dataset: The training images; its seed also orders them.
        batch_size: Images per window over all devices (the effective batch).
        num_workers: Worker processes; 0 makes windows in this process. Changes nothing in the batches.
        epoch: The first epoch; ``loader.batch_sampler.sampler.set_epoch`` sets later ones.
        start_window: Windows of the first epoch to skip, to resume in its middle.
        num_replicas: Number of devices; this process gets its share of each window.
        rank: Number of this process.
        prefetch: Windows that each worker makes ahead.
        repeats: float64 (I,), how often an epoch shows each image (`data.loading.balance`); None shows each once.
        multi_scale: Each window has an image size of its own, up to this part of the data set's larger or smaller.
        stride_px: The steps of these sizes: the network's largest stride.

    Returns:
        A loader whose length is the number of windows in an epoch; this process's share of the last may be empty.

    Memory: see `data.loading.ram_plan`.
    """
    sampler = WindowSampler(
        len(dataset),
        batch_size,
        dataset.seed,
        shuffle=True,
        epoch=epoch,
        num_replicas=num_replicas,
        rank=rank,
        start_window=start_window,
        repeats=repeats,
        image_sizes=image_sizes(dataset.source.image_size, multi_scale, stride_px) if multi_scale else None,
    )
    largest_size = max(sampler.image_sizes or [dataset.source.image_size])
    return _build_loader(dataset, sampler, num_workers, prefetch, _window_bytes(batch_size, num_replicas, largest_size))


def build_validation_loader(
    dataset: ValidationDataset,
    batch_size: int,
    num_workers: int = 0,
    *,
    num_replicas: int = 1,
    rank: int = 0,
) -> DataLoader[Batch]:
    """Letterboxed images with geometry, each once over all devices, in the data set's order or rectangle by rectangle.

    Arguments as in `build_train_loader`. This process's share of the last batch may be empty.
    """
    sampler: WindowSampler | RectangleSampler
    if dataset.rectangles_hw is not None:
        sampler = RectangleSampler(dataset.rectangles_hw, batch_size, num_replicas, rank)
    else:
        sampler = WindowSampler(len(dataset), batch_size, seed=0, shuffle=False, num_replicas=num_replicas, rank=rank)
    window_bytes = _window_bytes(batch_size, num_replicas, dataset.source.image_size)
    return _build_loader(dataset, sampler, num_workers, 2, window_bytes)


def _window_bytes(batch_size: int, num_replicas: int, image_size: int) -> int:
    """Bytes of the largest window of one process."""
    return -(-batch_size // num_replicas) * 3 * image_size**2


def _build_loader(
    dataset: WindowDataset,
    sampler: WindowSampler | RectangleSampler,
    num_workers: int,
    prefetch: int,
    window_bytes: int,
) -> DataLoader[Batch]:
    windows: Dataset[Any] = dataset  # ``__getitems__`` makes whole windows
    if num_workers:
        windows = RingDataset(dataset, WindowRing(num_workers, blocks_per_worker(prefetch), window_bytes))
    return WindowLoader(
        windows,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch if num_workers else None,
    )


class WindowLoader(DataLoader[Batch]):
    """A DataLoader whose workers end with their process, and whose errors come from the loader alone.

    Workers ignore SIGTERM. At exit Python sends it and waits without limit, so this loader kills its workers instead.
    If a worker is killed during the run, the next window raises within seconds. By default torch also raises that error
    from a signal handler in the middle of training, where a library may turn it into another error or try again.
    """

    def __iter__(self) -> Any:
        """Start the workers, or continue with those of the last epoch."""
        is_first = self._iterator is None
        with _kept_signal_handler("SIGCHLD"):
            iterator: Any = super().__iter__()
        if self.num_workers and is_first:
            atexit.register(_end_workers, weakref.ref(iterator))
            for worker in iterator._workers:
                worker._popen.terminate = worker._popen.kill  # Python calls it for workers that do not end
        return iterator


@contextmanager
def _kept_signal_handler(name: str) -> Iterator[None]:
    """Restore the handler of a signal after the block; does nothing where the signal does not exist (Windows)."""
    number = getattr(signal, name, None)
    handler = None if number is None else signal.getsignal(number)
    yield
    if number is not None and handler is not None and signal.getsignal(number) is not handler:
        signal.signal(number, handler)


def _end_workers(reference: weakref.ref[Any]) -> None:
    iterator = reference()
    if iterator is not None:
        iterator._shutdown_workers()


def _as_it_is(window: Any) -> Batch:
    """The datasets make whole windows."""
    return window


def _start_worker(worker_id: int) -> None:
    """Ignore signals that ask the run to stop: the training process ends its workers after its checkpoint.

    Ctrl-C in a terminal and SLURM's SIGTERM reach every process of a run. If the training process dies, torch's
    watchdog ends its workers within seconds.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepare_worker()


def prepare_worker() -> None:
    """Use one thread in a process that only makes images: the work is already spread over processes."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Make glibc reuse the memory of one image for the next.

    By default glibc returns such blocks to the system, which clears every page again: a third of a worker's time.
    Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)
