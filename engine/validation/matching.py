"""Matches detections with true boxes: greedily by score, in all images at once.

Shapes: D detections and N true boxes of all images, P overlapping pairs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_area

ROUNDING = 1e-3
"""Relative margin for rounding, so that the search by edges misses no pair."""


@dataclass
class Pairs:
    """Pairs of a detection and a true box that overlap in the same image."""

    detection_P: NDArray
    truth_P: NDArray
    iou_P: NDArray

    def where(self, mask_P: NDArray) -> Pairs:
        """The pairs for which the mask is True."""
        return Pairs(self.detection_P[mask_P], self.truth_P[mask_P], self.iou_P[mask_P])


def overlapping_pairs(found: Sequence[Tensor], true: Sequence[Tensor], min_iou: float) -> Pairs:
    """The pairs of all images whose IoU is at least ``min_iou``. Indices count through all images.

    Args:
        found: The detections of each image, as rows that begin with x1, y1, x2, y2.
        true: The true boxes of each image, in the same form.
        min_iou: Smallest IoU, above 0.

    Memory: about 100 bytes for each pair with near left edges, of one image at a time.
    """
    nothing = torch.empty(0, dtype=torch.long)
    columns = [(nothing, nothing, torch.empty(0))]
    first_detection = first_truth = 0
    for detections, truth in zip(found, true, strict=True):
        detection, other = _near(detections, truth, min_iou)
        iou = _aligned_iou(detections[detection, :4], truth[other, :4])
        is_match = iou >= min_iou
        columns.append((detection[is_match] + first_detection, other[is_match] + first_truth, iou[is_match]))
        first_detection += len(detections)
        first_truth += len(truth)
    return Pairs(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))


def _near(detections: Tensor, truth: Tensor, min_iou: float) -> tuple[Tensor, Tensor]:
    """Pairs in ascending order whose left edges and widths allow an IoU of ``min_iou``.

    The IoU of two boxes is at most that of their projections on the x axis. Let the detection be ``w`` wide. If the
    true box begins ``d`` further left, this IoU is at most w / (w + d). If it begins ``d`` further right, the IoU is at
    most (w - d) / w.
    """
    edges, order = truth[:, 0].nan_to_num(nan=torch.inf).sort()  # searchsorted needs sorted values without NaN
    left = detections[:, 0]
    width = (detections[:, 2] - left).clamp(min=0) * (1 + ROUNDING)
    starts = torch.searchsorted(edges, left - width * (1 / min_iou - 1))
    stops = torch.searchsorted(edges, left + width * (1 - min_iou), right=True)
    counts = (stops - starts).clamp(min=0)
    detection = torch.repeat_interleave(torch.arange(len(detections)), counts)
    place = torch.arange(len(detection)) - (counts.cumsum(0) - counts)[detection]
    pairs = detection * len(truth) + order[starts[detection] + place]
    pairs = pairs.sort().values
    return pairs // max(len(truth), 1), pairs % max(len(truth), 1)


def _aligned_iou(a_P4: Tensor, b_P4: Tensor) -> Tensor:
    """IoU of row i of ``a_P4`` with row i of ``b_P4``, computed as in torchvision's ``box_iou``."""
    width, height = (torch.minimum(a_P4[:, 2:], b_P4[:, 2:]) - torch.maximum(a_P4[:, :2], b_P4[:, :2])).clamp(min=0).T
    shared = width * height
    return shared / (box_area(a_P4) + box_area(b_P4) - shared)


def greedy_match(pairs: Pairs, scores_D: NDArray) -> NDArray:
    """Match by descending score. Each detection takes the free true box with which its IoU is largest.

    A loop over detections would be slow. Instead, each round settles pairs in all images at once: those whose detection
    prefers this true box, and whose true box no detection with a higher score can take. A few rounds give the same
    matches as the loop.

    Returns:
        int64 (D,): the true box of each detection, -1 for none.
    """
    rank_D = np.empty(len(scores_D), dtype=np.int64)
    rank_D[np.argsort(-scores_D, kind="stable")] = np.arange(len(scores_D))
    order = np.lexsort((-pairs.iou_P, rank_D[pairs.detection_P]))
    detection, truth = pairs.detection_P[order], pairs.truth_P[order]

    match_D = np.full(len(scores_D), -1)
    first_N = np.empty(truth.max(initial=-1) + 1, dtype=np.int64)
    is_taken_N = np.zeros(len(first_N), dtype=bool)
    while len(detection):
        place = np.arange(len(detection))
        is_preferred = np.append(True, detection[1:] != detection[:-1])  # the first pair of each detection
        first_N[truth[::-1]] = place[::-1]  # the first pair of each true box, which is written last
        settled = is_preferred & (first_N[truth] == place)
        match_D[detection[settled]] = truth[settled]
        is_taken_N[truth[settled]] = True
        free = (match_D[detection] < 0) & ~is_taken_N[truth]
        detection, truth = detection[free], truth[free]
    return match_D
