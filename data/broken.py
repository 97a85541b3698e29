"""What happens to an image that turns out unreadable while training: it becomes grey and has no objects.

The scan (`data.scan`) has left out what can be seen from outside: empty, cut-off and foreign files. What is left
is damage in the middle of a file, and files that vanish. A run must not end for one such picture after an hour,
and must not go on without its data either: each is logged, and too many of them are an error.

A JPEG that is damaged in the middle is mostly decoded all the same, with the wrong colours below the damage; that
is used as it is, as image viewers do.
"""

from __future__ import annotations

import logging

import numpy as np

from data.errors import DataError
from data.image import read_image
from data.index import ImageIndex
from data.letterbox import PAD_VALUE

MAX_BROKEN_SHARE = 0.01  # of the images, in each process; at least one image

logger = logging.getLogger(__name__)


class ForgivingReader:
    """Reads images and labels of an index; forgives a few images that cannot be read."""

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self.broken: set[int] = set()
        self.max_broken = max(int(MAX_BROKEN_SHARE * len(index)), 1)

    def image(self, image: int) -> np.ndarray:
        """Read an image, uint8 (height, width, 3) RGB; grey, of the size that it had, if it cannot be read.

        Raises:
            DataError: If more than `MAX_BROKEN_SHARE` of the images have been unreadable.
        """
        try:
            return read_image(self.index.path(image))
        except DataError as error:
            if image not in self.broken:
                self.broken.add(image)
                logger.warning("%s: shown as a grey image without objects", error)
            if len(self.broken) > self.max_broken:
                raise DataError(
                    f"{error}: with it {len(self.broken)} images have become unreadable since the start: check the "
                    "disk or network drive"
                ) from None
            return np.full((*self.index.sizes_hw[image], 3), PAD_VALUE, np.uint8)

    def labels(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and classes as `ImageIndex.labels` gives them; none of an image that could not be read."""
        boxes, classes = self.index.labels(image)
        return (boxes[:0], classes[:0]) if image in self.broken else (boxes, classes)
