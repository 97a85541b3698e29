"""Which detection finds which truth box: greedy matching by score, of all images at once.

Shapes: D detections and N truth boxes of all images, P overlapping pairs of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou


@dataclass
class Pairs:
    """Pairs of a detection and a truth box of the same image that overlap."""

    detection_P: NDArray
    truth_P: NDArray
    iou_P: NDArray

    def where(self, mask_P: NDArray) -> Pairs:
        """Some of them."""
        return Pairs(self.detection_P[mask_P], self.truth_P[mask_P], self.iou_P[mask_P])


def overlapping_pairs(found: Sequence[Tensor], true: Sequence[Tensor], min_iou: float) -> Pairs:
    """The pairs of all images with at least ``min_iou``; indices run through all images.

    Args:
        found: For each image rows that begin with a box, x1, y1, x2, y2.
        true: The same for the truth.
        min_iou: Least overlap.
    """
    nothing = torch.empty(0, dtype=torch.long)
    columns = [(nothing, nothing, torch.empty(0))]
    first_detection = first_truth = 0
    for detections, truth in zip(found, true, strict=True):
        iou = box_iou(detections[:, :4], truth[:, :4])
        rows = (iou >= min_iou).nonzero(as_tuple=True)
        columns.append((rows[0] + first_detection, rows[1] + first_truth, iou[rows]))
        first_detection += len(detections)
        first_truth += len(truth)
    return Pairs(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))


def greedy_match(pairs: Pairs, scores_D: NDArray) -> NDArray:
    """Match by descending score: each detection takes the truth box of greatest IoU that is still free.

    Detection after detection, that would be a slow loop. Instead each round settles, in all images at once,
    every pair that nobody can object to: the detection prefers this truth box, and no detection with a higher
    score could take it. The matches are the same, after a few rounds.

    Returns:
        (D,) the truth box of each detection, -1 for none.
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
        is_preferred = np.append(True, detection[1:] != detection[:-1])  # each detection's first pair
        first_N[truth[::-1]] = place[::-1]  # each truth box's first pair: the last one written
        settled = is_preferred & (first_N[truth] == place)
        match_D[detection[settled]] = truth[settled]
        is_taken_N[truth[settled]] = True
        free = (match_D[detection] < 0) & ~is_taken_N[truth]
        detection, truth = detection[free], truth[free]
    return match_D
