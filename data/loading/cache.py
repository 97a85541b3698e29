"""Caches of decoded images or files, shared by all worker processes.

An image lies in a slot of one shared block, with a tag that says which image it is. The first worker that needs an
image decodes it, writes it into its slot and then writes the tag. Other workers read it from the slot. There is no
lock: two workers may decode the same image and write the same bytes. A slot can be overwritten while a worker reads
it. A reader therefore calls `SlotCache.is_intact` afterwards and reads again if it is false.

`DecodedCache` keeps the images of the whole data set, as far as there are slots. `RecentImages` keeps the last few
hundred images. `FileCache` keeps the content of the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.formats.image import read_bytes
from data.loading.partners import PartnerPools
from data.loading.shared import SharedBlock

CHECK_EVERY = 16  # new images between two looks at the free RAM, in each process
LOOK_EVERY = 64  # samples between two looks: a full cache takes no new image, but may have to be dropped
PAGE_BYTES = 4096
EMPTY = 0


class CachedImage(NamedTuple):
    """An image in a slot; a view that must not be written to."""

    image: np.ndarray
    """uint8 (height, width, 3)."""
    original_hw: tuple[int, int]
    """Height and width of the file in pixels."""


class SlotCache:
    """Decoded images up to a certain size in shared slots."""

    def __init__(
        self,
        num_slots: int,
        slot_bytes: int,
        file: Path | None = None,
        available_bytes: Callable[[], int] | None = None,
        floor_bytes: int = 0,
    ) -> None:
        """Reserve the slots; only slots in use take memory.

        Args:
            num_slots: Most images.
            slot_bytes: Bytes of the largest image.
            file: Keeps the images in this new file; None keeps them in RAM.
            available_bytes: Returns the free RAM in bytes; None never asks.
            floor_bytes: With less free RAM the cache stops growing; with less than half of it the cache is dropped.
        """
        self.num_slots = num_slots
        self.slot_bytes = -(-slot_bytes // PAGE_BYTES) * PAGE_BYTES
        self.available_bytes = available_bytes
        self.floor_bytes = floor_bytes
        self._pictures = SharedBlock(num_slots * self.slot_bytes, file)
        self._table = SharedBlock((num_slots + 1) * 40)  # five numbers a slot; the last row says whether it is closed
        self._lent: list[tuple[int, int]] = []
        self._num_puts = 0
        self._num_samples = 0
        self._room = 0

    def address(self, image: int) -> tuple[int, int] | None:
        """Slot and tag (not 0) of an image; None if it has no slot."""
        raise NotImplementedError

    def get(self, image: int) -> CachedImage | None:
        """The image, if the cache holds it."""
        address = self.address(image)
        if address is None:
            return None
        slot, tag = address
        found, height, width, *original_hw = self._rows[slot].tolist()
        if found != tag:
            return None
        self._lent.append(address)
        return CachedImage(self._slot(slot, height, width), tuple(original_hw))

    def put(self, image: int, picture: np.ndarray, original_hw: tuple[int, int]) -> None:
        """Keep an image, unless it has no slot or RAM is short."""
        address = self.address(image)
        if address is None or picture.nbytes > self.slot_bytes or not self._has_memory():
            return
        slot, tag = address
        row = self._rows[slot]
        row[0] = EMPTY
        self._slot(slot, *picture.shape[:2])[:] = picture
        row[1:] = (*picture.shape[:2], *original_hw)
        row[0] = tag  # last, because it makes the slot valid

    def begin(self, epoch: int) -> None:
        """Start a sample; `is_intact` then covers the images read since. Every `LOOK_EVERY` samples, check free RAM."""
        self._lent.clear()
        self._num_samples += 1
        if self._num_samples % LOOK_EVERY == 0 and self.available_bytes is not None and not self.is_closed:
            self._drop_if_short(self.available_bytes())

    def is_intact(self) -> bool:
        """Whether every image that `get` has returned since `begin` is still in its slot."""
        return all(self._rows[slot, 0] == tag for slot, tag in self._lent)

    @property
    def num_pictures(self) -> int:
        """Images in the cache now."""
        return int(np.count_nonzero(self._rows[:-1, 0]))

    @property
    def is_closed(self) -> bool:
        """Whether the cache was dropped because RAM was short."""
        return bool(self._rows[-1, 0])

    def drop(self) -> None:
        """Free the memory of all images, for all processes, and accept no more."""
        self._rows[-1, 0] = 1
        self._rows[:-1, 0] = EMPTY
        self._pictures.release()

    def _has_memory(self) -> bool:
        if self.is_closed:
            return False
        if self.available_bytes is None or not self.floor_bytes:
            return True
        if self._num_puts % CHECK_EVERY == 0:
            self._room = self.available_bytes()
            self._drop_if_short(self._room)
        self._num_puts += self._room >= self.floor_bytes  # while RAM is short, every call looks again
        return self._room >= self.floor_bytes

    def _drop_if_short(self, room_bytes: int) -> None:
        if room_bytes < self.floor_bytes // 2:
            self.drop()

    def _slot(self, slot: int, height: int, width: int) -> np.ndarray:
        start = slot * self.slot_bytes
        return self._pictures.array[start : start + height * width * 3].reshape(height, width, 3)

    @property
    def _rows(self) -> np.ndarray:
        """int64 (num_slots + 1, 5): tag, height, width, original height and width."""
        return self._table.array.view(np.int64).reshape(-1, 5)


class DecodedCache(SlotCache):
    """Every image of a data set, or the first ones if there are fewer slots."""

    def address(self, image: int) -> tuple[int, int] | None:
        """The slot with the image's own number."""
        return (image, 1) if image < self.num_slots else None


class RecentImages(SlotCache):
    """The images that were used last in the order of the epoch; mosaic partners are taken from them.

    With two pools and as many slots as the loader has images in flight, each file is decoded once an epoch.
    """

    def __init__(self, pools: PartnerPools, num_slots: int, slot_bytes: int) -> None:
        super().__init__(num_slots, slot_bytes)
        self.pools = pools
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """Begin a sample; slots follow the order of its epoch."""
        self.pools.set_epoch(epoch)
        self._epoch = epoch
        super().begin(epoch)

    def address(self, image: int) -> tuple[int, int]:
        """Images that follow one another in the order have neighboring slots."""
        position = self.pools.position(image)
        return position % self.num_slots, self._epoch * self.pools.num_images + position + 1


class FileCache:
    """The compressed files: a tenth of the memory of decoded images, but each use decodes them again."""

    def __init__(
        self, sizes_bytes: np.ndarray, available_bytes: Callable[[], int] | None = None, floor_bytes: int = 0
    ) -> None:
        """Reserve room for all files; only files that have been read take memory.

        Args:
            sizes_bytes: int64 (I,), the size of each file. A file whose size has changed since is not kept.
            available_bytes: Returns the free RAM in bytes; None never asks.
            floor_bytes: With less than half of it free the cache is dropped.
        """
        self.available_bytes = available_bytes
        self.floor_bytes = floor_bytes
        self._num_reads = 0
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes_bytes, dtype=np.int64)])
        self._content = SharedBlock(int(self._offsets[-1]))
        self._is_here = SharedBlock(len(sizes_bytes) + 1)  # the last byte says whether the cache was dropped

    def read(self, image: int, path: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: If the file cannot be read or is empty.
        """
        self._drop_if_short()
        kept = self._content.array[slice(*self._offsets[image : image + 2])]
        if self._is_here.array[image] and not self.is_closed:
            content = kept.tobytes()
            if not self.is_closed:  # it may have been dropped during the copy
                return content
        content = read_bytes(path)
        if len(content) == len(kept) and not self.is_closed:
            kept[:] = np.frombuffer(content, np.uint8)
            self._is_here.array[image] = 1
        return content

    @property
    def is_closed(self) -> bool:
        """Whether the cache was dropped because RAM was short."""
        return bool(self._is_here.array[-1])

    def _drop_if_short(self) -> None:
        self._num_reads += 1
        if self._num_reads % LOOK_EVERY or self.available_bytes is None or self.is_closed:
            return
        if self.available_bytes() < self.floor_bytes // 2:
            self._is_here.array[-1] = 1
            self._content.release()
