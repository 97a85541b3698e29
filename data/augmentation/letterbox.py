"""Brings an image to the network's input size: the long side is resized, what is short of it padded."""

from __future__ import annotations

import math

import cv2
import numpy as np

PAD_VALUE = 114  # the gray that Ultralytics weights were trained with


def resize_long_side(image: np.ndarray, image_size: int) -> np.ndarray:
    """Resize bilinearly, up or down, to a long side of ``image_size``; the short side is rounded up.

    Args:
        image: uint8 (height, width, 3).
        image_size: Length of the long side.
    """
    height, width = image.shape[:2]
    gain = image_size / max(height, width)
    size = tuple(min(math.ceil(side * gain), image_size) for side in (width, height))
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def pad_centered(image: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Center an image on a gray rectangle; an odd border is smaller on the left and at the top.

    Args:
        image: uint8 (height, width, 3), neither side above that of ``size_hw``.
        size_hw: Height and width of the rectangle.

    Returns:
        The rectangle and its left and top border, in pixels.
    """
    height, width = image.shape[:2]
    left, top = (size_hw[1] - width) // 2, (size_hw[0] - height) // 2
    padded = np.full((*size_hw, 3), PAD_VALUE, np.uint8)
    padded[top : top + height, left : left + width] = image
    return padded, (left, top)
