"""MixUp and CutMix: blend in a second image, or paste part of it over an empty part of the first."""

from __future__ import annotations

import cv2
import numpy as np

from data.augmentation.picture import LabelledImage

MIXUP_BETA = 32.0  # both parameters: the share of either image is near a half
NUM_CUTS = 3
MIN_BOX_SHARE = 0.1  # a box of which less lies in the cut is dropped


def mixup(first: LabelledImage, second: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Blend two images of one size, and keep the boxes of both."""
    share = rng.beta(MIXUP_BETA, MIXUP_BETA)
    blend = (first.image * share + second.image * (1 - share)).astype(np.uint8)
    boxes = np.concatenate([first.boxes_xyxy_px, second.boxes_xyxy_px])
    return LabelledImage(blend, boxes, np.concatenate([first.classes, second.classes]))


def cutmix(first: LabelledImage, second: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Paste a rectangle of the second image where the first has no box.

    The rectangle is one of `NUM_CUTS` random ones, of random area, that touches no box of the first image. Without such
    a rectangle, or without a box of the second image in it, the first image stays as it is.
    """
    height, width = first.image.shape[:2]
    cuts = np.array([_draw_cut(rng, height, width) for _ in range(NUM_CUTS)])
    free = [cut for cut in cuts if not _share_inside(first.boxes_xyxy_px, cut).any()]
    if not free:
        return first
    cut = free[rng.integers(len(free))]
    taken = _share_inside(second.boxes_xyxy_px, cut) >= MIN_BOX_SHARE
    if not taken.any():
        return first
    x1, y1, x2, y2 = cut
    image = first.image.copy()
    cv2.copyTo(second.image[y1:y2, x1:x2], None, dst=image[y1:y2, x1:x2])
    boxes = second.boxes_xyxy_px[taken].clip([x1, y1, x1, y1], [x2, y2, x2, y2]).astype(np.float32)
    return LabelledImage(
        image,
        np.concatenate([first.boxes_xyxy_px, boxes]),
        np.concatenate([first.classes, second.classes[taken]]),
    )


def _draw_cut(rng: np.random.Generator, height: int, width: int) -> list[int]:
    """A rectangle (x1, y1, x2, y2); its share of the area is uniform before it is clipped to the image."""
    side = np.sqrt(1 - rng.random())
    half_width, half_height = int(width * side) // 2, int(height * side) // 2
    x, y = int(rng.integers(width)), int(rng.integers(height))
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    return [min(max(value, 0), limit) for value, limit in zip(corners, (width, height) * 2, strict=True)]


def _share_inside(boxes_px: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The part of each box that lies in the rectangle; (n,)."""
    low = np.maximum(boxes_px[:, :2], cut[:2])
    high = np.minimum(boxes_px[:, 2:], cut[2:])
    area = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(axis=1)
    return (high - low).clip(0).prod(axis=1) / np.maximum(area, 1e-9)
