"""Mosaic: four images around a random center on a gray canvas of twice the image size.

The canvas is then warped and cropped to the image size (`data.augmentation.affine`), which often leaves a quadrant
outside the picture. Such a quadrant is neither decoded nor drawn; the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.augmentation.letterbox import PAD_VALUE
from data.augmentation.picture import LabelledImage

NUM_TILES = 4


def draw_mosaic_center(rng: np.random.Generator, image_size: int) -> tuple[int, int]:
    """Where the four tiles meet on the canvas, (x, y): the middle half of each axis, evenly."""
    x, y = rng.uniform(0.5 * image_size, 1.5 * image_size, size=2)
    return int(x), int(y)


def build_mosaic(
    load: Callable[[int], LabelledImage],
    tiles: list[int],
    center_xy: tuple[int, int],
    image_size: int,
    window_xyxy_px: np.ndarray,
) -> LabelledImage:
    """Lay four images round the center, each cut off at the canvas's border.

    Args:
        load: Gives the image of an index.
        tiles: Indices of the images at the top left, top right, bottom left and bottom right.
        center_xy: Where they meet, in pixels of the canvas.
        image_size: Half the side of the canvas.
        window_xyxy_px: The part of the canvas that will be seen; quadrants outside of it stay empty.

    Returns:
        The canvas, with boxes clipped to it and those without area left out.

    Memory: 12 * image_size**2 bytes, and one image at a time.
    """
    side = 2 * image_size
    canvas = np.full((side, side, 3), PAD_VALUE, np.uint8)
    boxes, classes = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int32)]
    for position, tile in enumerate(tiles):
        if not _is_visible(position, center_xy, window_xyxy_px):
            continue
        content = load(tile)
        left, top = _paste(canvas, content.image, position, center_xy)
        moved = content.boxes_xyxy_px + np.array([left, top, left, top], np.float32)
        boxes.append(moved.clip(0, side))
        classes.append(content.classes)
    all_boxes, all_classes = np.concatenate(boxes), np.concatenate(classes)
    has_area = (all_boxes[:, 2:] > all_boxes[:, :2]).all(axis=1)
    return LabelledImage(canvas, all_boxes[has_area], all_classes[has_area])


def _is_left(position: int) -> bool:
    return position % 2 == 0


def _is_top(position: int) -> bool:
    return position < 2


def _is_visible(position: int, center_xy: tuple[int, int], window_xyxy_px: np.ndarray) -> bool:
    """Whether the window touches the quadrant."""
    (x, y), (x1, y1, x2, y2) = center_xy, window_xyxy_px
    return (x1 < x if _is_left(position) else x2 > x) and (y1 < y if _is_top(position) else y2 > y)


def _paste(canvas: np.ndarray, image: np.ndarray, position: int, center_xy: tuple[int, int]) -> tuple[int, int]:
    """Draw a tile with one corner on the center; returns where its top left corner lies on the canvas."""
    height, width = image.shape[:2]
    left = center_xy[0] - width if _is_left(position) else center_xy[0]
    top = center_xy[1] - height if _is_top(position) else center_xy[1]
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return left, top
