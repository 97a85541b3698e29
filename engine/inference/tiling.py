"""Large pictures in pieces: where the tiles lie, and how what was found in each becomes one list.

A tile's border cuts objects, so tiles overlap, and an object narrower than the overlap is whole in at least one of
them. What touches a border that another tile continues is "cut". A cut box that mostly coincides with another one of
its class is the same object seen twice: it goes if the other is whole, and the two become one if both are cut. Whole
boxes are never changed, and only near copies of them go, as everywhere (IoU above ``max_iou``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from models.detection.postprocess import Detections

BORDER_SHARE = 1 / 64  # of the tile: a box that ends this close to a border is taken for cut; networks err
MIN_SHARE = 0.5  # of the smaller box that must lie in the other for a cut box to be the same object


class Tile(NamedTuple):
    """A part of a picture, in its pixels."""

    left: int
    top: int
    right: int
    bottom: int


def cover(height: int, width: int, tile_px: int, overlap: float) -> list[Tile]:
    """Tiles of ``tile_px`` (or the picture's side, if shorter) that cover a picture, row by row.

    Neighbors overlap by ``overlap`` of a tile or more: they are spread evenly, so that the last ends with the picture.
    """
    return [
        Tile(left, top, min(left + tile_px, width), min(top + tile_px, height))
        for top in _starts(height, tile_px, overlap)
        for left in _starts(width, tile_px, overlap)
    ]


def num_tiles(height: int, width: int, tile_px: int, overlap: float) -> int:
    """How many `cover` would give."""
    return (_num_steps(height, tile_px, overlap) + 1) * (_num_steps(width, tile_px, overlap) + 1)


def _num_steps(side: int, tile_px: int, overlap: float) -> int:
    """From the first tile to the last, along one side of a picture."""
    return math.ceil(max(side - tile_px, 0) / max(tile_px * (1 - overlap), 1))


def _starts(side: int, tile_px: int, overlap: float) -> list[int]:
    num_steps = _num_steps(side, tile_px, overlap)
    return [round(step * (side - tile_px) / max(num_steps, 1)) for step in range(num_steps + 1)]


def merge(
    found: list[Detections], tiles: list[Tile], height: int, width: int, max_iou: float, max_detections: int
) -> Detections:
    """What was found in the tiles of one picture, as one list by descending score.

    Args:
        found: The detections of each tile, in its own pixels, on the CPU.
        tiles: As `cover` gives them.
        height: Of the picture.
        width: Of the picture.
        max_iou: Two whole boxes of a class that overlap by more are one object.
        max_detections: Of the picture.

    Memory: for each class, 16 bytes times the square of its detections.
    """
    pairs = list(zip(found, tiles, strict=True))
    boxes = torch.cat([one.boxes_xyxy_px + torch.tensor([tile.left, tile.top] * 2) for one, tile in pairs])
    cut = torch.cat([_is_cut(one.boxes_xyxy_px, tile, height, width) for one, tile in pairs])
    scores, classes = torch.cat([one.scores for one in found]), torch.cat([one.classes for one in found])
    kept_boxes, kept = [boxes[:0]], [classes[:0]]
    for c in classes.unique().tolist():
        of_class = (classes == c).nonzero().squeeze(1)
        order = of_class[scores[of_class].argsort(descending=True, stable=True)]
        order = torch.cat([order[~cut[order]], order[cut[order]]])  # whole ones first
        merged, rows = _merge_class(boxes[order], cut[order], max_iou)
        kept_boxes.append(merged)
        kept.append(order[rows])
    boxes, rows = torch.cat(kept_boxes), torch.cat(kept)
    best = scores[rows].argsort(descending=True, stable=True)[:max_detections]
    return Detections(boxes[best], scores[rows[best]], classes[rows[best]])


def _is_cut(boxes_N4: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """Whether each box, in pixels of its tile, ends at a side of the tile that is not the picture's."""
    left, top, right, bottom = boxes_N4.unbind(1)
    tile_width, tile_height = tile.right - tile.left, tile.bottom - tile.top
    border_px = max(tile_width, tile_height) * BORDER_SHARE
    cut = (left <= border_px) & (tile.left > 0) | (right >= tile_width - border_px) & (tile.right < width)
    return cut | (top <= border_px) & (tile.top > 0) | (bottom >= tile_height - border_px) & (tile.bottom < height)


def _merge_class(boxes_N4: Tensor, cut_N: Tensor, max_iou: float) -> tuple[Tensor, Tensor]:
    """Boxes of one class, best first, to those that remain and their rows; a cut one grows by what it takes in."""
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
