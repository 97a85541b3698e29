"""Prediction in tiles: the places of the tiles in a large image, and the merging of their detections into one list.

The border of a tile cuts objects. Tiles therefore overlap, and an object narrower than the overlap is complete in at
least one tile. A box is "cut" if it touches a border of its tile inside the image. A cut box that mostly coincides with
another box of its class is the same object. It is removed if the other box is whole. If both are cut, they become one
box. Whole boxes are never changed, and two of them are one object only if their IoU is above ``max_iou``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from models.detection.postprocess import Detections

BORDER_SHARE = 1 / 64
"""A box that ends within this share of a tile from its border counts as cut, because networks are not exact."""
MIN_SHARE = 0.5
"""A cut box is the same object as another one if this share of the smaller box lies in the larger one."""


class Tile(NamedTuple):
    """A part of an image, in pixels of the image."""

    left: int
    top: int
    right: int
    bottom: int


def cover(height: int, width: int, tile_px: int, overlap: float) -> list[Tile]:
    """Tiles that cover an image, row by row, with sides of ``tile_px`` or of the image if it is smaller.

    They are spread evenly and overlap by at least the share ``overlap`` of a tile. The last ends with the image.
    """
    return [
        Tile(left, top, min(left + tile_px, width), min(top + tile_px, height))
        for top in _starts(height, tile_px, overlap)
        for left in _starts(width, tile_px, overlap)
    ]


def num_tiles(height: int, width: int, tile_px: int, overlap: float) -> int:
    """The number of tiles that `cover` returns."""
    return (_num_steps(height, tile_px, overlap) + 1) * (_num_steps(width, tile_px, overlap) + 1)


def _num_steps(side: int, tile_px: int, overlap: float) -> int:
    """The number of tiles after the first one along a side of an image."""
    return math.ceil(max(side - tile_px, 0) / max(tile_px * (1 - overlap), 1))


def _starts(side: int, tile_px: int, overlap: float) -> list[int]:
    num_steps = _num_steps(side, tile_px, overlap)
    return [round(step * (side - tile_px) / max(num_steps, 1)) for step in range(num_steps + 1)]


def merge(
    found: list[Detections], tiles: list[Tile], height: int, width: int, max_iou: float, max_detections: int
) -> Detections:
    """The detections of all tiles of an image as one list by descending score.

    Args:
        found: The detections of each tile, in pixels of the tile, on the CPU.
        tiles: From `cover`.
        height: Of the image in pixels.
        width: Of the image in pixels.
        max_iou: Two whole boxes of a class are one object if their IoU is larger.
        max_detections: Most detections in the image.
    """
    pairs = list(zip(found, tiles, strict=True))
    boxes = torch.cat([one.boxes_xyxy_px + torch.tensor([tile.left, tile.top] * 2) for one, tile in pairs])
    cut = torch.cat([_is_cut(one.boxes_xyxy_px, tile, height, width) for one, tile in pairs])
    scores, classes = torch.cat([one.scores for one in found]), torch.cat([one.classes for one in found])
    kept_boxes, kept = [boxes[:0]], [classes[:0]]
    for c in classes.unique().tolist():
        of_class = (classes == c).nonzero().squeeze(1)
        order = of_class[scores[of_class].argsort(descending=True, stable=True)]
        order = torch.cat([order[~cut[order]], order[cut[order]]])  # whole boxes first
        merged, rows = _merge_class(boxes[order], cut[order], max_iou)
        kept_boxes.append(merged)
        kept.append(order[rows])
    boxes, rows = torch.cat(kept_boxes), torch.cat(kept)
    best = scores[rows].argsort(descending=True, stable=True)[:max_detections]
    return Detections(boxes[best], scores[rows[best]], classes[rows[best]])


def _is_cut(boxes_N4: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """Whether each box, in pixels of its tile, ends at a side of the tile that is inside the image."""
    left, top, right, bottom = boxes_N4.unbind(1)
    tile_width, tile_height = tile.right - tile.left, tile.bottom - tile.top
    border_px = max(tile_width, tile_height) * BORDER_SHARE
    cut = (left <= border_px) & (tile.left > 0) | (right >= tile_width - border_px) & (tile.right < width)
    return cut | (top <= border_px) & (tile.top > 0) | (bottom >= tile_height - border_px) & (tile.bottom < height)


def _merge_class(boxes_N4: Tensor, cut_N: Tensor, max_iou: float) -> tuple[Tensor, Tensor]:
    """The boxes of one class that remain, and their rows. A cut box grows to include the boxes merged into it."""
    boxes_N4 = boxes_N4.clone()
    alive_N = torch.ones_like(cut_N)
    for row in range(len(boxes_N4)):
        while alive_N[row]:
            same_N = _same_object(boxes_N4[row], cut_N[row], boxes_N4, cut_N, max_iou) & alive_N
            same_N[: row + 1] = False
            if not same_N.any():
                break
            alive_N &= ~same_N
            if not cut_N[row]:
                break
            parts = torch.cat([boxes_N4[row : row + 1], boxes_N4[same_N]])
            boxes_N4[row] = torch.cat([parts[:, :2].amin(0), parts[:, 2:].amax(0)])
    rows = alive_N.nonzero().squeeze(1)
    return boxes_N4[rows], rows


def _same_object(box_4: Tensor, is_cut: Tensor, boxes_N4: Tensor, cut_N: Tensor, max_iou: float) -> Tensor:
    sides = (torch.minimum(box_4[2:], boxes_N4[:, 2:]) - torch.maximum(box_4[:2], boxes_N4[:, :2])).clamp(min=0)
    shared_N = sides.prod(1)
    area, areas_N = box_area(box_4[None]), box_area(boxes_N4)
    iou_N = shared_N / (area + areas_N - shared_N).clamp(min=1e-9)
    share_N = shared_N / torch.minimum(area, areas_N).clamp(min=1e-9)
    return (iou_N > max_iou) | ((is_cut | cut_N) & (share_N > MIN_SHARE))
