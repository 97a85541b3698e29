"""Mosaic: four images around a random center on a gray canvas of twice the image size.

`data.augmentation.affine` then warps and crops the canvas to the image size, which often leaves a quadrant outside the
result. Such a quadrant is neither decoded nor drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.augmentation.letterbox import PAD_VALUE
from data.augmentation.picture import LabelledImage
from data.augmentation.place import Tile, mosaic_tiles

NUM_TILES = 4


def draw_mosaic_center(rng: np.random.Generator, image_size: int) -> tuple[int, int]:
    """The point (x, y) of the canvas where the tiles meet: uniform in the middle half of each axis."""
    x, y = rng.uniform(0.5 * image_size, 1.5 * image_size, size=2)
    return int(x), int(y)


def build_mosaic(
    load: Callable[[int], LabelledImage],
    images: list[int],
    center_xy: tuple[int, int],
    image_size: int,
    window_xyxy_px: np.ndarray,
) -> LabelledImage:
    """Place four images around the center, each cut off at the canvas's border.

    Args:
        load: Returns the image of an index.
        images: Indices of the images at the top left, top right, bottom left and bottom right.
        center_xy: The point where they meet, in pixels of the canvas.
        image_size: Half the side of the canvas in pixels.
        window_xyxy_px: The visible part of the canvas; quadrants outside of it stay empty.

    Returns:
        The canvas, with boxes clipped to it and those without area left out.

    Memory: 12 * image_size**2 bytes, and one image at a time.
    """
    side = 2 * image_size
    canvas = np.full((side, side, 3), PAD_VALUE, np.uint8)
    boxes, classes = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int32)]
    for tile in mosaic_tiles(images, center_xy):
        if not _is_visible(tile, window_xyxy_px):
            continue
        content = load(tile.image)
        left, top = _paste(canvas, content.image, tile)
        moved = content.boxes_xyxy_px + np.array([left, top, left, top], np.float32)
        boxes.append(moved.clip(0, side))
        classes.append(content.classes)
    all_boxes, all_classes = np.concatenate(boxes), np.concatenate(classes)
    has_area = (all_boxes[:, 2:] > all_boxes[:, :2]).all(axis=1)
    return LabelledImage(canvas, all_boxes[has_area], all_classes[has_area])


def _is_visible(tile: Tile, window_xyxy_px: np.ndarray) -> bool:
    """Whether the window touches the tile."""
    (x, y), (x1, y1, x2, y2) = tile.corner_xy, window_xyxy_px
    return (x1 < x if tile.is_left else x2 > x) and (y1 < y if tile.is_top else y2 > y)


def _paste(canvas: np.ndarray, image: np.ndarray, tile: Tile) -> tuple[int, int]:
    """Draw a tile with one corner on the center; returns the place of its top left corner on the canvas."""
    (x, y), (height, width) = tile.corner_xy, image.shape[:2]
    left, top = x - width * tile.is_left, y - height * tile.is_top
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, canvas.shape[1]), min(top + height, canvas.shape[0])
    canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return left, top
