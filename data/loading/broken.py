"""What happens to an image that turns out unreadable while training: it becomes gray and has no objects.

The scan (`data.indexing.scan`) has left out what can be seen from outside: empty, cut-off and foreign files. What is
left is damage in the middle of a file, and files that vanish. A run must not end for one such picture after an hour,
and must not go on without its data either: each is logged, and too many of them are an error.

A JPEG that is damaged in the middle is mostly decoded all the same, with the wrong colors below the damage; that
is used as it is, as image viewers do.
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
        """Note an image that cannot be read; returns a gray one, uint8 (height, width, 3), of the size that it had.

        Raises:
            DataError: If more than `MAX_BROKEN_SHARE` of the images have been unreadable.
        """
        if image not in self.images:
            self.images.add(image)
            logger.warning("%s It is shown as a gray image without objects.", error)
        if len(self.images) > self.max_images:
            raise DataError(
                f"{error} With it, {len(self.images)} images have become unreadable since the start. Check the "
                "disk or the network drive."
            ) from None
        return np.full((*self.index.sizes_hw[image], 3), PAD_VALUE, np.uint8)
