"""The types of augmentation: an image with its objects, and a source of images."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class LabelledImage(NamedTuple):
    """An image and its objects, in one pixel frame."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    boxes_xyxy_px: np.ndarray
    """float32 (n, 4), corner boxes in pixels of ``image``."""
    classes: np.ndarray
    """int32 (n,)."""


class PictureSource(Protocol):
    """Gives resized images by number, as `data.loading.source` does."""

    image_size: int
    """Length of the long side of every image in pixels."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, image: int) -> LabelledImage:
        """Read one image."""
