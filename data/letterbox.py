"""Brings an image to the network's input size: the long side is resized, the short side padded."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from data.batch import ImageGeometry

PAD_VALUE = 114  # the grey that Ultralytics weights were trained with


def resize_long_side(image: np.ndarray, image_size: int, original_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Resize bilinearly, up or down, to a long side of ``image_size``; the short side is rounded up.

    Args:
        image: uint8 (height, width, 3).
        image_size: Length of the long side.
        original_hw: Height and width that the proportions are taken from, where ``image`` was already reduced.
    """
    height, width = original_hw or image.shape[:2]
    gain = image_size / max(height, width)
    size = tuple(min(math.ceil(side * gain), image_size) for side in (width, height))
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def pad_to_square(image: np.ndarray, image_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Centre an image on a grey square; an odd border is smaller on the left and at the top.

    Args:
        image: uint8 (height, width, 3), neither side above ``image_size``.
        image_size: Side of the square.

    Returns:
        The square and its left and top border, in pixels.
    """
    height, width = image.shape[:2]
    left, top = (image_size - width) // 2, (image_size - height) // 2
    square = np.full((image_size, image_size, 3), PAD_VALUE, np.uint8)
    square[top : top + height, left : left + width] = image
    return square, (left, top)


def letterbox_geometry(
    original_hw: tuple[int, int], resized_hw: tuple[int, int], pad_xy: tuple[int, int]
) -> ImageGeometry:
    """One row of geometry: the way back from the padded square to the original picture."""
    gains = [resized_hw[1] / original_hw[1], resized_hw[0] / original_hw[0]]
    return ImageGeometry(
        gain_B2=torch.tensor([gains], dtype=torch.float32),
        pad_B2=torch.tensor([pad_xy], dtype=torch.float32),
        original_size_B2=torch.tensor([original_hw], dtype=torch.int64),
    )
