"""Reads the images of a split, decoded, resized and with boxes in pixels."""

from __future__ import annotations

import numpy as np

from data.augmentation.letterbox import resize_long_side
from data.augmentation.picture import LabelledImage
from data.errors import DataError
from data.formats.image import decode_image, read_bytes
from data.indexing.index import ImageIndex
from data.loading.broken import BrokenImages
from data.loading.cache import FileCache, SlotCache


class ImageSource:
    """The images of a split with the long side resized to ``image_size``, from a cache or from disk."""

    def __init__(
        self,
        index: ImageIndex,
        image_size: int,
        cache: SlotCache | None = None,
        files: FileCache | None = None,
        broken: BrokenImages | None = None,
    ) -> None:
        """Store the arguments; without ``broken`` a new count of unreadable images begins."""
        self.index = index
        self.image_size = image_size
        self.cache = cache
        self.files = files
        self.broken = broken or BrokenImages(index)

    def without_cache(self) -> ImageSource:
        """The same images, decoded again; the count of unreadable images is shared."""
        return ImageSource(self.index, self.image_size, None, self.files, self.broken)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def load(self, image: int) -> LabelledImage:
        """Read one image; with a cache, a view that is valid as long as `SlotCache.is_intact` is true.

        Raises:
            DataError: If too many files cannot be read: see `data.loading.broken`.
        """
        return self.load_with_size(image)[0]

    def load_with_size(self, image: int) -> tuple[LabelledImage, tuple[int, int]]:
        """As `load`, also the (height, width) of the file in pixels."""
        boxes_rel, classes = self.index.labels(image)
        cached = self.cache and self.cache.get(image)
        try:
            resized, original_hw = cached or self._read(image)
        except DataError as error:
            gray = self.broken.replace(image, error)
            resized, original_hw = resize_long_side(gray, self.image_size), gray.shape[:2]
            boxes_rel, classes = boxes_rel[:0], classes[:0]
        height, width = resized.shape[:2]
        boxes_px = boxes_rel * np.array([width, height, width, height], np.float32)
        return LabelledImage(resized, boxes_px, classes), original_hw

    def _read(self, image: int) -> tuple[np.ndarray, tuple[int, int]]:
        path = self.index.path(image)
        content = read_bytes(path) if self.files is None else self.files.read(image, path)
        picture = decode_image(content, path)
        original_hw = picture.shape[:2]
        resized = resize_long_side(picture, self.image_size)
        if self.cache is not None:
            self.cache.put(image, resized, original_hw)
        return resized, original_hw
