"""Which images make up which window, in one process or in several.

An epoch is one ordering of all images (`EpochOrder`), cut into *windows* of ``batch_size`` images
(`WindowSampler`): a window is what one optimizer step sees, over all processes. Each process gets its share
of every window, so all of them take the same number of steps and together see every image exactly once.

The sampler hands out ``SampleKey(epoch, index)`` rather than plain numbers: a sample's random draws then
follow from its key alone, and worker processes that outlive an epoch need not be told which epoch it is.

The two classes are split as `torch.utils.data.BatchSampler` is: whoever sets the epoch of a DataLoader's
``batch_sampler.sampler`` (Lightning does, before every epoch) reaches `EpochOrder.set_epoch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from data.errors import DataError

ORDER_STREAM = 0  # a SeedSequence child of its own: no sample's generator can coincide with the order's


class SampleKey(NamedTuple):
    """What a sample is a function of, beside the run's seed and configuration."""

    epoch: int
    index: int


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """All images once, shuffled by (seed, epoch); int64 (num_images,)."""
    order = np.arange(num_images)
    seeds = np.random.SeedSequence([seed, epoch], spawn_key=(ORDER_STREAM,))
    np.random.Generator(np.random.PCG64(seeds)).shuffle(order)
    return order


class EpochOrder(Sampler[SampleKey]):
    """All images once, in the order of one epoch: shuffled by (seed, epoch), or as they come."""

    def __init__(self, num_images: int, seed: int, shuffle: bool, epoch: int = 0) -> None:
        self.num_images = num_images
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[SampleKey]:
        order = epoch_order(self.num_images, self.seed, self.epoch) if self.shuffle else range(self.num_images)
        epoch = self.epoch
        return (SampleKey(epoch, int(index)) for index in order)


class WindowSampler(Sampler[list[SampleKey]]):
    """Cuts each epoch into windows and yields this process's share of every window; no image is lost.

    The last window holds what is left over. If that is fewer images than processes, it takes as many as it
    needs from the window before it, so that every process has at least one image in every step.

    ``len()`` is the number of windows in a whole epoch, also when ``start_window`` skips some of them.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        epoch: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        start_window: int = 0,
    ) -> None:
        """Prepare the windows of one process.

        Args:
            num_images: Images in the data set.
            batch_size: Images per window over all processes (the effective batch).
            seed: Seed of the shuffling.
            shuffle: A new order for every epoch, or the data set's own order.
            epoch: The epoch that the first iteration is of.
            num_replicas: Number of processes.
            rank: This process.
            start_window: Windows of epoch ``epoch`` to leave out, to resume in its middle; later epochs are
                whole.

        Raises:
            DataError: If some window would leave a process without an image.
        """
        self.sampler = EpochOrder(num_images, seed, shuffle, epoch)
        self.num_replicas = num_replicas
        self.rank = rank
        self.window_stops = _window_stops(num_images, batch_size, num_replicas)
        self._start_epoch = epoch
        self._start_window = start_window

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.window_stops)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = list(self.sampler)
        first = self._start_window if self.sampler.epoch == self._start_epoch else 0
        windows = list(zip([0, *self.window_stops], self.window_stops, strict=False))
        return (keys[self._share(start, stop)] for start, stop in windows[first:])

    def _share(self, start: int, stop: int) -> slice:
        """This rank's contiguous part of window ``start:stop``; parts differ by one image at most."""
        size = stop - start
        cuts = [start + size * rank // self.num_replicas for rank in (self.rank, self.rank + 1)]
        return slice(*cuts)


def _window_stops(num_images: int, batch_size: int, num_replicas: int) -> list[int]:
    """Where each window ends in the epoch's order."""
    stops = [*range(batch_size, num_images, batch_size), num_images]
    starts = [0, *stops[:-1]]
    missing = num_replicas - (stops[-1] - starts[-1])
    if missing > 0 and len(stops) > 1:
        stops[-2] -= missing
    sizes = np.diff([0, *stops])
    if sizes.min() < num_replicas:
        raise DataError(
            f"batch_size {batch_size} leaves one of {num_replicas} devices without an image in some step of "
            f"{num_images} images: use fewer devices or a batch_size of at least {2 * num_replicas - 1}"
        )
    return stops
