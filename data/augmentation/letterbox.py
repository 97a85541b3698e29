"""Brings an image to the network's input size: resizes the long side and pads the short side."""

from __future__ import annotations

import math

import cv2
import numpy as np

PAD_VALUE = 114  # the gray that Ultralytics weights were trained with


def resize_long_side(image: np.ndarray, image_size: int) -> np.ndarray:
    """Resize uint8 (height, width, 3) bilinearly to a long side of ``image_size``; the short side is rounded up."""
    height, width = image.shape[:2]
    gain = image_size / max(height, width)
    size = tuple(min(math.ceil(side * gain), image_size) for side in (width, height))
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def pad_centered(image: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Center uint8 (height, width, 3) on a gray rectangle of ``size_hw`` pixels, which must not be smaller.

    Returns:
        The rectangle, and its left and top border in pixels; an odd border is smaller there.
    """
    height, width = image.shape[:2]
    left, top = (size_hw[1] - width) // 2, (size_hw[0] - height) // 2
    padded = np.full((*size_hw, 3), PAD_VALUE, np.uint8)
    padded[top : top + height, left : left + width] = image
    return padded, (left, top)
