"""Random affine and perspective warps of an image together with its boxes.

The matrix is ``translate @ shear @ rotate_and_scale @ perspective @ center``, as in Ultralytics: the middle of the
source goes to the middle of the output, up to the random shift. The same warp therefore crops a mosaic canvas and
letterboxes a single image.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data.augmentation.letterbox import PAD_VALUE
from data.augmentation.picture import LabelledImage

MIN_SIDE_PX = 2  # a box whose width or height is not above this after the warp is dropped
MIN_AREA_RATIO = 0.1  # a box of which no more than this part is inside is dropped
MAX_ASPECT_RATIO = 100
WINDOW_MARGIN_PX = 2  # one pixel for bilinear interpolation, one for rounding


def draw_affine_matrix(
    rng: np.random.Generator,
    source_hw: tuple[int, int],
    output_size: int,
    *,
    degrees: float,
    translate: float,
    scale: float,
    shear: float,
    perspective: float,
) -> tuple[np.ndarray, float]:
    """Draw a random warp to a square of ``output_size`` pixels; ranges and units are those of `AugmentConfig`.

    The number of draws is always the same. ``source_hw`` is the size of the source in pixels.

    Returns:
        float64 (3, 3), from source pixels to output pixels; and its scale.
    """
    tilt_x, tilt_y = rng.uniform(-perspective, perspective, size=2)
    angle = math.radians(rng.uniform(-degrees, degrees))
    factor = rng.uniform(1 - scale, 1 + scale)
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-shear, shear, size=2)))
    shift_x, shift_y = rng.uniform(0.5 - translate, 0.5 + translate, size=2) * output_size

    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    translation = np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]])
    shearing = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    projection = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
    centering = np.array([[1, 0, -source_hw[1] / 2], [0, 1, -source_hw[0] / 2], [0, 0, 1]])
    return translation @ shearing @ rotation @ projection @ centering, factor


def visible_window(matrix: np.ndarray, output_size: int) -> np.ndarray:
    """The bounding box (x1, y1, x2, y2), in source pixels, of the part of the source that the output shows.

    Unlimited under perspective, where the output may show points that lie behind the camera.
    """
    if not _is_affine(matrix):
        return np.array([-np.inf, -np.inf, np.inf, np.inf])
    output = np.array([[0, 0, output_size, output_size]], np.float64)
    window = transform_boxes(output, np.linalg.inv(matrix))[0]
    return window + WINDOW_MARGIN_PX * np.array([-1, -1, 1, 1])


def warp(source: LabelledImage, matrix: np.ndarray, scale: float, output_size: int) -> LabelledImage:
    """Warp an image and its boxes to a gray square; drop boxes of which too little remains.

    ``matrix`` is (3, 3), from source pixels to output pixels. ``scale`` is its scale: a box is compared with its
    size without cropping.

    Returns:
        The square; each box bounds its warped corners, clipped to the square.
    """
    size, border = (output_size, output_size), (PAD_VALUE,) * 3
    if _is_affine(matrix):
        image = cv2.warpAffine(source.image, matrix[:2], size, borderValue=border)
    else:
        image = cv2.warpPerspective(source.image, matrix, size, borderValue=border)
    boxes = transform_boxes(source.boxes_xyxy_px, matrix).clip(0, output_size)
    keep = is_candidate(source.boxes_xyxy_px * scale, boxes)
    return LabelledImage(image, boxes[keep].astype(np.float32), source.classes[keep])


def transform_boxes(boxes_xyxy_px: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The boxes around the transformed corners of boxes; (n, 4) to float64 (n, 4)."""
    corners_n42 = boxes_xyxy_px[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
    moved_n43 = corners_n42 @ matrix[:, :2].T + matrix[:, 2]
    moved_n42 = moved_n43[..., :2] / moved_n43[..., 2:]
    return np.concatenate([moved_n42.min(axis=1), moved_n42.max(axis=1)], axis=1)


def is_candidate(before_xyxy_px: np.ndarray, after_xyxy_px: np.ndarray) -> np.ndarray:
    """Which boxes to keep after a warp; bool (n,).

    The rule of Ultralytics: both sides above 2 px, over a tenth of the area left, aspect ratio below 100.
    """
    width, height = (after_xyxy_px[:, 2:] - after_xyxy_px[:, :2]).T
    area_before = (before_xyxy_px[:, 2:] - before_xyxy_px[:, :2]).prod(axis=1)
    large = (width > MIN_SIDE_PX) & (height > MIN_SIDE_PX)
    whole = width * height > MIN_AREA_RATIO * area_before
    compact = np.maximum(width, height) < MAX_ASPECT_RATIO * np.minimum(width, height)
    return large & whole & compact


def _is_affine(matrix: np.ndarray) -> bool:
    return bool((matrix[2] == (0, 0, 1)).all())
