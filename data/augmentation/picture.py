"""What augmentation works on: a picture with its objects, and where such pictures come from."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class LabelledImage(NamedTuple):
    """A picture and its objects, in one pixel frame."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    boxes_xyxy_px: np.ndarray
    """float32 (n, 4), corner boxes in pixels of ``image``."""
    classes: np.ndarray
    """int32 (n,)."""


class PictureSource(Protocol):
    """Gives pictures by number, resized; `data.loading.source` is one."""

    image_size: int
    """Length of the long side of every picture."""

    def __len__(self) -> int:
        """Number of pictures."""

    def load(self, image: int) -> LabelledImage:
        """Get one picture."""
