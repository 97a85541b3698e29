"""Divides the images of an epoch into windows, for one process or several.

An epoch is one order of all images (`EpochOrder`), cut into *windows* of ``batch_size`` images (`WindowSampler`). A
window is the images of one optimizer step over all processes. Each process gets its share of every window, so all
processes take the same number of steps.

With ``repeats`` (`data.loading.balance`) an epoch shows some images several times and has more windows. It has as many
places as the repeats add up to, rounded up, and draws again which images with a fraction get one place more.

The random draws of a sample follow from its `SampleKey` alone, so a worker need not know the epoch. Lightning sets the
epoch of a DataLoader's ``batch_sampler.sampler`` before every epoch; that calls `EpochOrder.set_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

ORDER_STREAM = 0  # the spawn key of a SeedSequence: no generator of a sample can coincide with that of the order
REPEAT_STREAM = 1
SIZE_STREAM = 2
STRIDE_PX = 32  # largest stride of most networks: input sides are multiples of it


def image_sizes(image_size: int, multi_scale: float, stride_px: int = STRIDE_PX) -> range:
    """The image sizes of multi-scale training: multiples of ``stride_px`` up to this part larger or smaller."""
    steps = int(image_size * multi_scale) // stride_px
    return range(max(image_size - steps * stride_px, stride_px), image_size + steps * stride_px + 1, stride_px)


class SampleKey(NamedTuple):
    """Everything that a sample depends on, beside the run's seed and configuration."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name
    copy: int = 0
    """0 for the first time that an epoch shows the image, then 1, 2, ...: each is augmented differently."""
    image_size: int = 0
    """Side of the image to make in pixels; 0 for that of the data set. No random draw depends on it."""


def sample_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """The generator of all random draws of one sample."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key.epoch, key.index, key.copy])))


def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """All images once, shuffled by (seed, epoch); int64 (num_images,)."""
    order = np.arange(num_images)
    _generator(seed, epoch, ORDER_STREAM).shuffle(order)
    return order


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch], spawn_key=(stream,))))


class KeySequence(NamedTuple):
    """The keys of one epoch, in its order."""

    epoch: int
    images: np.ndarray
    """int64 (P,)."""
    copies: np.ndarray
    """int64 (P,)."""

    def part(self, places: slice, image_size: int = 0) -> list[SampleKey]:
        """The keys of some places."""
        pairs = zip(self.images[places].tolist(), self.copies[places].tolist(), strict=True)
        return [SampleKey(self.epoch, image, copy, image_size) for image, copy in pairs]


class EpochOrder(Sampler[SampleKey]):
    """The order of an epoch: shuffled by (seed, epoch) or not; each image once or as often as ``repeats`` says."""

    def __init__(
        self, num_images: int, seed: int, shuffle: bool, epoch: int = 0, repeats: np.ndarray | None = None
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch
        self.repeats = repeats

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images if self.repeats is None else math.ceil(self.repeats.sum())

    def __iter__(self) -> Iterator[SampleKey]:
        return iter(self.keys().part(slice(None)))

    def keys(self) -> KeySequence:
        """The keys of the epoch as arrays; `KeySequence.part` makes tuples, of which a million would take 130 MB."""
        images = np.arange(self.num_images)
        copies = np.zeros(self.num_images, np.int64)
        if self.repeats is not None:
            images, copies = draw_repeats(self.repeats, len(self), _generator(self.seed, self.epoch, REPEAT_STREAM))
        if self.shuffle:
            order = epoch_order(len(images), self.seed, self.epoch)
            images, copies = images[order], copies[order]
        return KeySequence(self.epoch, images, copies)


def draw_repeats(repeats: np.ndarray, num_places: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill the places of an epoch: an image with 2.3 repeats gets two or three places, on average 2.3.

    Systematic sampling: the repeats (float64 (I,), above 0) are laid end to end in a random order and cut at equal
    distances. The number of places is exact, and no image is more than one place away from its share.

    Returns:
        int64 (num_places,) each: images in ascending order, and which copy of its image each place shows.
    """
    shuffled = rng.permutation(len(repeats))
    ends = np.cumsum(repeats[shuffled])
    cuts = (np.arange(num_places) + rng.random()) * (ends[-1] / num_places)
    drawn = shuffled[np.searchsorted(ends, cuts, side="right").clip(max=len(repeats) - 1)]
    counts = np.bincount(drawn, minlength=len(repeats))
    images = np.repeat(np.arange(len(repeats)), counts)
    copies = np.arange(num_places) - np.repeat(np.cumsum(counts) - counts, counts)
    return images, copies


class WindowSampler(Sampler[list[SampleKey]]):
    """Cuts each epoch into windows and yields this process's share of every window.

    The last window has the remaining images. If these are fewer than the processes, the last processes have an empty
    share of it, so the number of windows is the same for any number of processes.

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
        repeats: np.ndarray | None = None,
        image_sizes: range | None = None,
    ) -> None:
        """Prepare the windows of one process.

        Args:
            num_images: Images in the data set.
            batch_size: Images per window over all processes (the effective batch).
            seed: Seed of the order.
            shuffle: Shuffle each epoch anew; False keeps the data set's order.
            epoch: The epoch of the first iteration.
            num_replicas: Number of processes.
            rank: Number of this process.
            start_window: Windows of epoch ``epoch`` to skip, to resume in its middle.
            repeats: float64 (I,), how often an epoch shows each image, on average; None shows each once.
            image_sizes: One of them is drawn by (seed, epoch) for each window; None takes the data set's own.
        """
        self.sampler = EpochOrder(num_images, seed, shuffle, epoch, repeats)
        self.num_replicas = num_replicas
        self.rank = rank
        self.window_stops = [*range(batch_size, len(self.sampler), batch_size), len(self.sampler)]
        self.image_sizes = image_sizes
        self._start_epoch = epoch
        self._start_window = start_window

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.window_stops)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = self.sampler.keys()
        first = self._start_window if self.sampler.epoch == self._start_epoch else 0
        windows = list(zip([0, *self.window_stops], self.window_stops, self._window_sizes(), strict=False))
        return (keys.part(self._share(start, stop), size) for start, stop, size in windows[first:])

    def _window_sizes(self) -> list[int]:
        """The image size of every window of the epoch, the same in all processes."""
        if self.image_sizes is None:
            return [0] * len(self)
        order = self.sampler
        return _generator(order.seed, order.epoch, SIZE_STREAM).choice(self.image_sizes, len(self)).tolist()

    def _share(self, start: int, stop: int) -> slice:
        """This rank's part of window ``start:stop``; parts differ by one image at most, and rank 0 has at least one."""
        size = stop - start
        cuts = [start - (-size * rank // self.num_replicas) for rank in (self.rank, self.rank + 1)]
        return slice(*cuts)
