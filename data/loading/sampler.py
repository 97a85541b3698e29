"""Divides the images of an epoch into windows, for one process or several.

An epoch is one order of all images (`EpochOrder`), cut into *windows* of ``batch_size`` images (`WindowSampler`). A
window is the images of one optimizer step over all processes. Each process gets its share of every window. All
processes therefore take the same number of steps, and together they see every image exactly once.

With ``repeats`` (`data.loading.balance`) an epoch shows some images several times. Every epoch has as many places as
the repeats add up to, rounded up. Each epoch draws anew which images with a fraction get one place more. Windows keep
their size, so an epoch has more windows.

The sampler yields ``SampleKey(epoch, index)`` instead of plain numbers. The random draws of a sample then follow from
its key alone, and a worker that outlives an epoch need not know which epoch it is.

The two classes are split as `torch.utils.data.BatchSampler` is: whoever sets the epoch of a DataLoader's
``batch_sampler.sampler`` (Lightning does, before every epoch) reaches `EpochOrder.set_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

ORDER_STREAM = 0  # a SeedSequence child of its own: no sample's generator can coincide with the order's
REPEAT_STREAM = 1
SIZE_STREAM = 2
STRIDE_PX = 32  # the largest of most networks: input sides are multiples of it


def image_sizes(image_size: int, multi_scale: float, stride_px: int = STRIDE_PX) -> range:
    """The sizes of multi-scale training: multiples of ``stride_px`` within this part of ``image_size``, either way."""
    steps = int(image_size * multi_scale) // stride_px
    return range(max(image_size - steps * stride_px, stride_px), image_size + steps * stride_px + 1, stride_px)


class SampleKey(NamedTuple):
    """What a sample is a function of, beside the run's seed and configuration."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name, which nobody calls on a key
    copy: int = 0
    """0 for the first time that an image is shown in the epoch, then 1, 2, ...: each is augmented differently."""
    image_size: int = 0
    """Side of the picture to make, in pixels; 0 for that of the data set. No random draw depends on it."""


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
        """Some of the keys."""
        pairs = zip(self.images[places].tolist(), self.copies[places].tolist(), strict=True)
        return [SampleKey(self.epoch, image, copy, image_size) for image, copy in pairs]


class EpochOrder(Sampler[SampleKey]):
    """The images in the order of one epoch: shuffled by (seed, epoch), or as they come; once, or as repeated."""

    def __init__(
        self, num_images: int, seed: int, shuffle: bool, epoch: int = 0, repeats: np.ndarray | None = None
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch
        self.repeats = repeats

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images if self.repeats is None else math.ceil(self.repeats.sum())

    def __iter__(self) -> Iterator[SampleKey]:
        return iter(self.keys().part(slice(None)))

    def keys(self) -> KeySequence:
        """The keys of the epoch, each made when it is asked for: a million of them would take 130 MB."""
        images = np.arange(self.num_images)
        copies = np.zeros(self.num_images, np.int64)
        if self.repeats is not None:
            images, copies = draw_repeats(self.repeats, len(self), _generator(self.seed, self.epoch, REPEAT_STREAM))
        if self.shuffle:
            order = epoch_order(len(images), self.seed, self.epoch)
            images, copies = images[order], copies[order]
        return KeySequence(self.epoch, images, copies)


def draw_repeats(repeats: np.ndarray, num_places: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill the places of an epoch: an image with 2.3 repeats gets two or three of them, on average 2.3.

    Systematic sampling: the repeats are laid end to end, in a random order, and cut at equal distances. So the
    number of places is exact, and no image is further than one place from its share.

    Args:
        repeats: float64 (I,), above 0.
        num_places: Length of the epoch; the repeats are scaled to add up to it.
        rng: The epoch's generator.

    Returns:
        int64 (num_places,) each: images in ascending order, and which copy of its image each place is.
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
    """Cuts each epoch into windows and yields this process's share of every window; no image is lost.

    The last window holds what is left over. If that is fewer images than processes, the last processes have an empty
    share of it: windows, and so steps, are the same for any number of processes.

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
            seed: Seed of the shuffling.
            shuffle: A new order for every epoch, or the data set's own order.
            epoch: The epoch that the first iteration is of.
            num_replicas: Number of processes.
            rank: This process.
            start_window: Windows of epoch ``epoch`` to leave out, to resume in its middle; later epochs are
                whole.
            repeats: float64 (I,), how often each image is shown per epoch, on average; None shows each once.
            image_sizes: One of them, drawn by (seed, epoch), for each window; None for the data set's own.
        """
        self.sampler = EpochOrder(num_images, seed, shuffle, epoch, repeats)
        self.num_replicas = num_replicas
        self.rank = rank
        self.window_stops = [*range(batch_size, len(self.sampler), batch_size), len(self.sampler)]
        self.image_sizes = image_sizes
        self._start_epoch = epoch
        self._start_window = start_window

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
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
        """This rank's contiguous part of window ``start:stop``; parts differ by one image at most, rank 0 has some."""
        size = stop - start
        cuts = [start - (-size * rank // self.num_replicas) for rank in (self.rank, self.rank + 1)]
        return slice(*cuts)
