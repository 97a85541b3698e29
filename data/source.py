"""Where the data sets get their pictures from: decoded, resized and with boxes in pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.cache import SlotCache
from data.image import read_image
from data.index import ImageIndex
from data.letterbox import resize_long_side


class LabelledImage(NamedTuple):
    """A picture and its objects, in one pixel frame."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    boxes_xyxy_px: np.ndarray
    """float32 (n, 4), corner boxes in pixels of ``image``."""
    classes: np.ndarray
    """int32 (n,)."""


class ImageSource:
    """The images of a split with the long side resized to ``image_size``, from the cache or from disk."""

    def __init__(self, index: ImageIndex, image_size: int) -> None:
        self.index = index
        self.image_size = image_size
        self.cache: SlotCache | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def load(self, image: int) -> LabelledImage:
        """Get one image; with a cache, a view that is only valid as long as the cache `is_intact`.

        Raises:
            DataError: If the file cannot be read.
        """
        return self.load_with_size(image)[0]

    def load_with_size(self, image: int) -> tuple[LabelledImage, tuple[int, int]]:
        """Get one image, and say how big (height, width) it is in the file."""
        cached = self.cache and self.cache.get(image)
        resized, original_hw = cached or self._read(image)
        boxes_rel, classes = self.index.labels(image)
        height, width = resized.shape[:2]
        boxes_px = boxes_rel * np.array([width, height, width, height], np.float32)
        return LabelledImage(resized, boxes_px, classes), original_hw

    def _read(self, image: int) -> tuple[np.ndarray, tuple[int, int]]:
        original = read_image(self.index.path(image))
        resized = resize_long_side(original, self.image_size)
        if self.cache is not None:
            self.cache.put(image, resized, original.shape[:2])
        return resized, original.shape[:2]
