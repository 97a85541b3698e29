"""From raw predictions to detections: the confident (box, class) pairs that no better one overlaps.

Non-maximum suppression always runs to its end. Its work is bounded by the number of candidates, never by a
clock, so equal predictions give equal detections on a slow machine and on a fast one. Everything is FP32.

Shapes: B images, A anchors, C classes, n detections of one image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

FEW_CANDIDATES = 2000  # up to here one suppression of all classes is quicker than one for each
FIRST_SHARE = 2  # candidates for each detection that may be kept, at the first try
NEXT_SHARE = 4  # times as many at the next
LOGIT_SLACK = 0.01  # far more than the rounding of a sigmoid
FEWEST_KEPT = 300  # in an image, by max_detections auto: what others keep
KEPT_FOR_EACH_OBJECT = 2  # by max_detections auto, as one of two detections may be wrong


@dataclass(frozen=True)
class NmsConfig:
    """Which predictions count as detections. The defaults are the field's for measuring mAP."""

    confidence: float = 0.001
    """Detections score above this."""
    iou: float = 0.7
    """Of two boxes of one class that overlap by more than this, the one with the lower score goes."""
    multi_label: bool = True
    """Let a box be a detection of every class above ``confidence``, instead of its best class only."""
    max_candidates: int = 30_000
    """Candidates of an image that enter the suppression, the best ones: bounds time and memory. No more are kept."""
    max_detections: int | Literal["auto"] = "auto"
    """Detections of an image that are kept, the best ones; all of them count in AP. ``auto``: 300, or twice the objects
    of the most crowded validation image if that is more."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the key, the value and the rule.
        """
        for key in ("confidence", "iou"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"model.nms.{key}: {getattr(self, key)}: must be between 0 and 1")
        for key in ("max_candidates", "max_detections"):
            if getattr(self, key) != "auto" and getattr(self, key) < 1:
                raise ValueError(f"model.nms.{key}: {getattr(self, key)}: must be at least 1")

    @property
    def limit(self) -> int:
        """``max_detections`` as a number."""
        return FEWEST_KEPT if self.max_detections == "auto" else self.max_detections

    def for_crowds(self, most_objects: int) -> NmsConfig:
        """With a number in place of ``auto``, for images with up to so many objects."""
        if self.max_detections != "auto":
            return self
        limit = max(FEWEST_KEPT, KEPT_FOR_EACH_OBJECT * most_objects)
        return replace(self, max_detections=min(limit, self.max_candidates))


@dataclass
class Detections:
    """What was found in one image, by descending score."""

    boxes_xyxy_px: Tensor
    """float32 (n, 4), corner boxes in pixels, in whatever frame the predictions were."""
    scores: Tensor
    """float32 (n,), probabilities in [0, 1]."""
    classes: Tensor
    """int64 (n,)."""


@torch.no_grad()
def detections(boxes_xyxy_px_BA4: Tensor, logits_BCA: Tensor, config: NmsConfig) -> list[Detections]:
    """The detections of each image of a batch.

    Args:
        boxes_xyxy_px_BA4: Decoded boxes, corners in pixels; any float dtype.
        logits_BCA: Class scores before the sigmoid; any float dtype.
        config: Which predictions count.

    Returns:
        B `Detections` on the same device, each by descending score, then by ascending anchor and class.

    Memory: one image at a time, the scores (n, C) of the anchors that count in FP32 and, on a GPU, one bit for each
        pair of candidates: 107 MiB for 30,000.
    """
    # Most anchors are silent in every class: leave them out before anything is computed. The last word have scores.
    least_logit = torch.tensor(config.confidence).logit().item() - LOGIT_SLACK
    counts_BA = logits_BCA.amax(1).float() > least_logit
    return [
        _image_detections(boxes_A4.float(), logits_CA, counts_A.nonzero().squeeze(1), config)
        for boxes_A4, logits_CA, counts_A in zip(boxes_xyxy_px_BA4, logits_BCA, counts_BA, strict=True)
    ]


def _image_detections(boxes_A4: Tensor, logits_CA: Tensor, loud_n: Tensor, config: NmsConfig) -> Detections:
    scores_nC = logits_CA.index_select(1, loud_n).float().sigmoid().T.contiguous()
    if config.multi_label:
        anchors, classes = (scores_nC > config.confidence).nonzero(as_tuple=True)
        scores = scores_nC[anchors, classes]
    else:
        best_n, best_classes_n = scores_nC.max(dim=1)
        anchors = (best_n > config.confidence).nonzero().squeeze(1)
        scores, classes = best_n[anchors], best_classes_n[anchors]

    scores, order = scores.sort(descending=True, stable=True)
    scores, order = scores[: config.max_candidates], order[: config.max_candidates]
    boxes, classes = boxes_A4[loud_n[anchors[order]]], classes[order]
    kept = _suppress_until(config.limit, boxes, scores, classes, config.iou)
    return Detections(boxes[kept], scores[kept], classes[kept])


def _suppress_until(enough: int, boxes_N4: Tensor, scores_N: Tensor, classes_N: Tensor, max_iou: float) -> Tensor:
    """Indices of the best boxes that remain, at most ``enough``; boxes are sorted by descending score.

    Whether a box remains depends on better ones only. So the best few candidates are tried first, and the others only
    if too few of these remain: the work for each detection is what it would be, for the long tail nothing.
    """
    num_tried = FIRST_SHARE * enough
    while True:
        # Ascending indices are descending scores; torchvision's order of ties is open.
        tried = slice(num_tried)
        kept = _suppress(boxes_N4[tried], scores_N[tried], classes_N[tried], max_iou).sort().values
        if len(kept) >= enough or num_tried >= len(scores_N):
            return kept[:enough]
        num_tried *= NEXT_SHARE


def _suppress(boxes_N4: Tensor, scores_N: Tensor, classes_N: Tensor, max_iou: float) -> Tensor:
    """Indices of the boxes that remain, each class by itself.

    Few boxes are moved apart by class and suppressed all at once. In FP64 that changes no coordinate; in FP32, as
    usually done, class 25 would have its boxes rounded to 1/64 px.
    """
    kept: Tensor
    if 0 < len(scores_N) <= FEW_CANDIDATES:
        boxes_N4 = boxes_N4.double()
        low, high = boxes_N4.aminmax()
        kept = nms(boxes_N4 + (classes_N * (high - low + 1))[:, None], scores_N.double(), max_iou)
    else:
        kept = batched_nms(boxes_N4, scores_N, classes_N, max_iou)
    return kept
