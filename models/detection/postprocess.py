"""Makes detections from raw predictions: removes boxes that are not confident or overlap a better box of their class.

Non-maximum suppression always runs to its end. The number of candidates bounds its work, not a time limit, so equal
predictions give equal detections on slow and fast machines. All computations use FP32.

Shape suffixes: B images, A anchors, C classes, N candidates of one image, n anchors or detections of one image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

FEW_CANDIDATES = 2000  # up to this number, one suppression of all classes is faster than one for each class
FIRST_SHARE = 2  # the first try takes this number of candidates for each detection to keep
NEXT_SHARE = 4  # each further try takes this many times as many
LOGIT_SLACK = 0.01  # far more than the rounding error of a sigmoid
FEWEST_KEPT = 300  # least max_detections of auto: the usual number in this field
KEPT_FOR_EACH_OBJECT = 2  # detections of auto per object: one of the two may be wrong


@dataclass(frozen=True)
class NmsConfig:
    """Which predictions count as detections. The defaults are the usual ones for measuring mAP."""

    confidence: float = 0.001
    """Detections have a score above this."""
    iou: float = 0.7
    """Of two boxes of one class with an IoU above this, the one with the lower score is removed."""
    multi_label: bool = True
    """Make a box a detection of every class above ``confidence``, instead of only its best class."""
    max_candidates: int = 30_000
    """Most candidates of an image that enter the suppression, best first. Bounds time, memory and detections."""
    max_detections: int | Literal["auto"] = "auto"
    """Most detections of an image that are kept, best first; all of them count in AP. ``auto``: 300, or twice the
    objects of the most crowded validation image if that is more."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If a value is out of its range.
        """
        for key in ("confidence", "iou"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"model.nms.{key}: {getattr(self, key)}: must be between 0 and 1")
        for key in ("max_candidates", "max_detections"):
            if getattr(self, key) != "auto" and getattr(self, key) < 1:
                raise ValueError(f"model.nms.{key}: {getattr(self, key)}: must be at least 1")

    @property
    def limit(self) -> int:
        """``max_detections`` as a number; 300 for ``auto``."""
        return FEWEST_KEPT if self.max_detections == "auto" else self.max_detections

    def for_crowds(self, most_objects: int) -> NmsConfig:
        """Replace ``auto`` by the number of detections for images with up to ``most_objects`` objects."""
        if self.max_detections != "auto":
            return self
        limit = max(FEWEST_KEPT, KEPT_FOR_EACH_OBJECT * most_objects)
        return replace(self, max_detections=min(limit, self.max_candidates))


@dataclass
class Detections:
    """Detections of one image, by descending score."""

    boxes_xyxy_px: Tensor
    """Corner boxes, float32 (n, 4), in pixels and in the coordinate frame of the predictions."""
    scores: Tensor
    """Probabilities, float32 (n,), in [0, 1]."""
    classes: Tensor
    """Class indices, int64 (n,)."""


@torch.no_grad()
def detections(boxes_xyxy_px_BA4: Tensor, logits_BCA: Tensor, config: NmsConfig) -> list[Detections]:
    """Make the detections of each image of a batch.

    Args:
        boxes_xyxy_px_BA4: Decoded boxes, corners in pixels; any float dtype.
        logits_BCA: Class scores before the sigmoid; any float dtype.
        config: Which predictions count.

    Returns:
        B `Detections` on the same device, each by descending score, then by ascending anchor and class.

    Memory: for one image at a time, the FP32 scores (n, C) of the anchors above ``confidence`` and, on a GPU, one bit
        for each pair of candidates: 107 MiB for 30,000 candidates.
    """
    # Most anchors are far below the confidence in every class: leave them out first, then compare exact scores.
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
    """Indices of the best boxes that remain, at most ``enough``, out of boxes by descending score.

    Whether a box remains depends only on better boxes. So the first try takes only the best candidates, and further
    tries take more only if too few of these remain.
    """
    num_tried = FIRST_SHARE * enough
    while True:
        # Ascending indices mean descending scores; torchvision does not define the order of equal scores.
        tried = slice(num_tried)
        kept = _suppress(boxes_N4[tried], scores_N[tried], classes_N[tried], max_iou).sort().values
        if len(kept) >= enough or num_tried >= len(scores_N):
            return kept[:enough]
        num_tried *= NEXT_SHARE


def _suppress(boxes_N4: Tensor, scores_N: Tensor, classes_N: Tensor, max_iou: float) -> Tensor:
    """Indices of the boxes that remain when each class is suppressed separately.

    Few boxes are suppressed together, after a shift that separates the classes. In FP64 the shift changes no
    coordinate; in FP32, as usually done, it would round the boxes of class 25 to 1/64 px.
    """
    kept: Tensor
    if 0 < len(scores_N) <= FEW_CANDIDATES:
        boxes_N4 = boxes_N4.double()
        low, high = boxes_N4.aminmax()
        kept = nms(boxes_N4 + (classes_N * (high - low + 1))[:, None], scores_N.double(), max_iou)
    else:
        kept = batched_nms(boxes_N4, scores_N, classes_N, max_iou)
    return kept
