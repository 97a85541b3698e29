"""Builds the DataLoaders: one `Batch`, the images of a whole window, per item."""

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
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.rectangles import RectangleSampler
from data.loading.ring import RingDataset, WindowRing, blocks_per_worker
from data.loading.sampler import STRIDE_PX, WindowSampler, image_sizes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 * 2**20  # the most that glibc takes


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
    """Shuffled windows of augmented pictures.

    Args:
        dataset: Its seed also orders the images.
        batch_size: Images per window over all devices (the effective batch).
        num_workers: Worker processes; 0 reads in this one. Changes nothing in the batches.
        epoch: The epoch to begin with; later ones are set by ``loader.batch_sampler.sampler.set_epoch``.
        start_window: Windows of the first epoch to leave out, when resuming in its middle.
        num_replicas: Number of devices; this process gets its share of each window.
        rank: Which of them this process is.
        prefetch: Windows that each worker makes ahead.
        repeats: How often each image is shown per epoch, on average, see `data.loading.balance`; None for once.
        multi_scale: Each window has an image size of its own, up to this part of the data set's larger or smaller.
        stride_px: The steps of these sizes: the network's largest stride.

    Returns:
        A loader whose length is the number of windows in an epoch; a share of the last one may be empty.

    Memory: up to ``num_workers * (prefetch + 1)`` windows of 3 * image_size**2 bytes an image, of the largest size for
        multi-scale training; see `data.loading.ram_plan`.
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
    """Letterboxed pictures, each exactly once over all devices: in the data set's order, or rectangle by rectangle.

    Args:
        dataset: What to validate on.
        batch_size: Images per batch over all devices.
        num_workers: Worker processes; 0 reads in this one.
        num_replicas: Number of devices.
        rank: Which of them this process is.

    Returns:
        A loader of batches with geometry; a share of the last one may be empty.
    """
    sampler: WindowSampler | RectangleSampler
    if dataset.rectangles_hw is not None:
        sampler = RectangleSampler(dataset.rectangles_hw, batch_size, num_replicas, rank)
    else:
        sampler = WindowSampler(len(dataset), batch_size, seed=0, shuffle=False, num_replicas=num_replicas, rank=rank)
    window_bytes = _window_bytes(batch_size, num_replicas, dataset.source.image_size)
    return _build_loader(dataset, sampler, num_workers, 2, window_bytes)


def _window_bytes(batch_size: int, num_replicas: int, image_size: int) -> int:
    """Of the largest window of one process."""
    return -(-batch_size // num_replicas) * 3 * image_size**2


def _build_loader(
    dataset: TrainDataset | ValidationDataset,
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

    Workers ignore SIGTERM, by which Python asks them to end before it waits for them, for ever: they are killed then,
    whoever still holds the loader when the process exits. Should one be killed before, the next window says so, within
    seconds. By default torch also raises that error out of a signal handler, wherever training then happens to be,
    such as in a library that turns it into another one, or tries again.
    """

    def __iter__(self) -> Any:
        """Start the workers, or go on with those that there are."""
        is_first = self._iterator is None
        with _kept_signal_handler("SIGCHLD"):
            iterator: Any = super().__iter__()
        if self.num_workers and is_first:
            atexit.register(_end_workers, weakref.ref(iterator))
            for worker in iterator._workers:
                worker._popen.terminate = worker._popen.kill  # should a worker not end when it is told to
        return iterator


@contextmanager
def _kept_signal_handler(name: str) -> Iterator[None]:
    """Undo what is done to a signal's handler, where there is that signal (Windows lacks some)."""
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
    """Ignore what asks the run to stop: the training process ends its workers once it has written its checkpoint.

    Ctrl-C in a terminal and SLURM's SIGTERM reach every process of a run. If the training process dies, torch's
    watchdog ends its workers within seconds.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    prepare_worker()


def prepare_worker() -> None:
    """Settings of a process that only makes pictures: as the processes are the parallelism, one thread each."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of one picture for the next.

    By default it gives blocks of this size back to the system, which hands out zeroed pages again, one fault for every
    4096 bytes: a third of a worker's time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)
