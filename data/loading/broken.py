"""Replaces an image that cannot be read during training by a gray image without objects.

The scan (`data.indexing.scan`) leaves out empty, cut-off and foreign files before training. It does not find damage in
the middle of a file, nor a file that vanishes later. One such image must not end a run after an hour, and a run must
not continue without its data. So each of them is logged, and too many of them are an error.

OpenCV decodes most JPEG files that are damaged in the middle, with wrong colors below the damage. Training uses these
images as they are, as image viewers do.
"""

from __future__ import annotations

import logging

import numpy as np

from data.augmentation.letterbox import PAD_VALUE
from data.errors import DataError
from data.indexing.index import ImageIndex

MAX_BROKEN_SHARE = 0.01  # of the images, in each process; at least one image

logger = logging.getLogger(__name__)


class BrokenImages:
    """The images of an index that this process could not read."""

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self.images: set[int] = set()
        self.max_images = max(int(MAX_BROKEN_SHARE * len(index)), 1)

    def replace(self, image: int, error: DataError) -> np.ndarray:
        """Record an unreadable image; returns gray uint8 (height, width, 3) of the size that the index has.

        Raises:
            DataError: If more than `MAX_BROKEN_SHARE` of the images have been unreadable.
        """
        if image not in self.images:
            self.images.add(image)
            logger.warning("%s A gray image without objects replaces it.", error)
        if len(self.images) > self.max_images:
            raise DataError(
                f"{error} {len(self.images)} images have become unreadable since the start. Check the disk or the "
                "network drive."
            ) from None
        return np.full((*self.index.sizes_hw[image], 3), PAD_VALUE, np.uint8)
