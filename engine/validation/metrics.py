"""Detection metrics of a validation set: COCO's average precision, and precision, recall, F1 and confusion as in YOLO.

Average precision is COCO's, from faster-coco-eval, with one difference. COCO counts 100 detections of a class in an
image. Here every detection counts that non-maximum suppression has kept, so that crowded images are measured whole.
Ultralytics' AP interpolates differently (docs/troubleshooting.md has the difference).

Precision, recall and F1 against confidence follow Ultralytics: boxes of one class match at IoU 0.5, and the operating
point is the confidence of the best smoothed mean F1. The confusion matrix also matches boxes of different classes.
A class without a detection at the operating point has precision 0. Ultralytics gives 1 if the class has detections
with lower scores, so that missed classes raise its mean.

The state is all detections and true boxes, in host memory. Processes gather it before they compute. The metrics of
several processes therefore equal those of one, except for the order of equal scores in different images.

Shapes: D detections and N true boxes of all images, P overlapping pairs of them, C classes, T IoU thresholds,
R recall thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from engine.validation.coco_precision import COCO_IOUS, COCO_RECALLS, CocoBoxes, coco_precision, no_garbage_collection
from engine.validation.matching import greedy_match, overlapping_pairs
from models.detection.postprocess import Detections

COCO_MEANS = {
    "map50_95": np.s_[..., 0],
    "map50": np.s_[0, ..., 0],
    "map75": np.s_[5, ..., 0],
    "map_small": np.s_[..., 1],
    "map_medium": np.s_[..., 2],
    "map_large": np.s_[..., 3],
}
"""The part of COCO's precision (IoU, recall, class, size) whose mean has this name."""
COCO_BOXES_AT_ONCE = 100_000
"""Classes are evaluated in groups of about this many boxes, which limits memory."""
CONFIDENCES = np.linspace(0, 1, 1000)
SMOOTHING_POINTS = 101  # odd, about a tenth of the confidences
MATCH_IOU = 0.5
CONFUSION_CONFIDENCE = 0.25
CONFUSION_IOU = 0.45


@dataclass
class DetectionResults:
    """Metrics of a validation set; NaN for what has no true boxes."""

    class_names: list[str]
    num_images: int
    num_truth_C: NDArray
    """True boxes of each class. Means are over the classes that have true boxes."""

    map50_95: float
    """COCO's AP: mean over classes and the IoU thresholds 0.50, 0.55 to 0.95."""
    map50: float
    """The mean at IoU 0.5."""
    map75: float
    """The mean at IoU 0.75."""
    map_small: float
    """``map50_95`` of objects up to 32 x 32 px of the original image."""
    map_medium: float
    """``map50_95`` of objects between 32 x 32 px and 96 x 96 px."""
    map_large: float
    """``map50_95`` of objects from 96 x 96 px."""
    ap50_95_C: NDArray
    """``map50_95`` of each class."""
    ap50_C: NDArray
    """``map50`` of each class."""

    confidence: float
    """The operating point, at which the smoothed mean F1 is best. The next three are measured there."""
    precision_C: NDArray
    """Share of detections that are right; 0 for a class without detections."""
    recall_C: NDArray
    """Share of true boxes that are found."""
    f1_C: NDArray
    """Harmonic mean of precision and recall."""

    precision_curve: NDArray
    """(C, 1000) over `CONFIDENCES`."""
    recall_curve: NDArray
    """(C, 1000) over `CONFIDENCES`."""
    f1_curve: NDArray
    """(C, 1000) over `CONFIDENCES`."""
    pr_curve: NDArray
    """(C, 101): COCO's precision at IoU 0.5 over `COCO_RECALLS`; its mean is ``ap50_C``."""
    confusion: NDArray
    """(C + 1, C + 1) counts [predicted, true] at confidence 0.25 and IoU 0.45. The last class is the background."""

    @property
    def precision(self) -> float:
        """Mean over classes."""
        return _mean(self.precision_C)

    @property
    def recall(self) -> float:
        """Mean over classes."""
        return _mean(self.recall_C)

    @property
    def f1(self) -> float:
        """Mean over classes."""
        return _mean(self.f1_C)

    def summary(self) -> dict[str, float]:
        """The numbers to log, by name."""
        names = (*COCO_MEANS, "precision", "recall", "f1", "confidence")
        return {f"val/{name}": getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Everything except the curves as plain values for JSON; None for what has no true boxes."""
        columns = self._columns()
        return {
            **{name.removeprefix("val/"): _or_none(value) for name, value in self.summary().items()},
            "num_images": self.num_images,
            "classes": [
                {"name": name, **{key: _or_none(values[c].item()) for key, values in columns.items()}}
                for c, name in enumerate(self.class_names)
            ],
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """A table as text: a line for all classes, a line for each class, and a line for the sizes."""
        of_all = (self.num_truth_C.sum(), self.precision, self.recall, self.f1, self.map50, self.map50_95)
        rows = [("all", *of_all), *zip(self.class_names, *self._columns().values(), strict=True)]
        width = max(len(row[0]) for row in rows)
        head = f"{'class':{width}} {'boxes':>8} {'P':>7} {'R':>7} {'F1':>7} {'AP50':>7} {'AP50-95':>7}"
        body = [f"{name:{width}} {boxes:8d}" + "".join(f" {_shown(x):>7}" for x in xs) for name, boxes, *xs in rows]
        means = {"small": self.map_small, "medium": self.map_medium, "large": self.map_large}
        sizes = ", ".join(f"{size} {_shown(value)}" for size, value in means.items())
        foot = f"P, R and F1 at confidence {_shown(self.confidence)}. AP50-95 by size: {sizes}."
        return "\n".join([head, *body, foot])

    def _columns(self) -> dict[str, NDArray]:
        return {
            "num_truth": self.num_truth_C,
            "precision": self.precision_C,
            "recall": self.recall_C,
            "f1": self.f1_C,
            "ap50": self.ap50_C,
            "ap50_95": self.ap50_95_C,
        }


class DetectionMetrics(Metric):
    """Collects detections and true boxes, image by image, and computes the `DetectionResults` of all images.

    With several processes, the process group needs a backend for CPU tensors (gloo, also beside NCCL).

    Memory: on the host, 24 bytes for each detection and 20 for each true box; about 1.1 KB for each while computing.
    """

    full_state_update = False

    # Flat fp32 tensors, because torchmetrics gathers an empty one from a process without images.
    detections: list[Tensor]  # rows of x1, y1, x2, y2, class, score
    truth: list[Tensor]  # rows of x1, y1, x2, y2, class
    counts: list[Tensor]  # a row for each image: numbers of detections and of true boxes

    def __init__(self, class_names: list[str]) -> None:
        """Begin without images. ``class_names`` has the name of each class id."""
        super().__init__()
        self.class_names = class_names
        for state in ("detections", "truth", "counts"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self, found: list[Detections], truth_xyxy_px: Tensor, truth_classes: Tensor, image_index: Tensor
    ) -> None:
        """Add images. Boxes are in pixels of the original images. Tensors may be on any device.

        Args:
            found: The detections of each image.
            truth_xyxy_px: (N, 4) true boxes of all these images.
            truth_classes: (N,) class of each true box.
            image_index: (N,) image of each true box, as an ascending index into ``found``.
        """
        detections = torch.cat(
            [torch.column_stack([image.boxes_xyxy_px, image.classes, image.scores]) for image in found]
        )
        truth = torch.column_stack([truth_xyxy_px, truth_classes])
        num_detections = torch.tensor([len(image.scores) for image in found])
        num_truth = torch.bincount(image_index.cpu(), minlength=len(found))
        self.detections.append(detections.float().flatten().cpu())
        self.truth.append(truth.float().flatten().cpu())
        self.counts.append(torch.column_stack([num_detections, num_truth]).float().flatten())

    def compute(self) -> DetectionResults:
        """The metrics of all images of all processes."""
        detections, truth, counts = _table(self.detections, 6), _table(self.truth, 5), _table(self.counts, 2)
        num_found, num_true = counts.long().unbind(1)
        classes, scores = detections[:, 4].int().numpy(), detections[:, 5].double().numpy()
        truth_classes = truth[:, 4].int().numpy()
        num_classes = len(self.class_names)
        num_truth_C = np.bincount(truth_classes, minlength=num_classes)

        found, true = (
            (rows.numpy(), np.repeat(np.arange(len(counts)), num.numpy()))
            for rows, num in ((detections, num_found), (truth, num_true))
        )
        precision_TRCS = _coco(found, true, len(counts), num_classes)
        precision_TRC = precision_TRCS[..., 0]

        boxes = detections.split(num_found.tolist()), truth.split(num_true.tolist())
        pairs = overlapping_pairs(*boxes, min(MATCH_IOU, CONFUSION_IOU))
        same_class = classes[pairs.detection_P] == truth_classes[pairs.truth_P]
        is_hit_D = greedy_match(pairs.where(same_class & (pairs.iou_P >= MATCH_IOU)), scores) >= 0
        precision, recall, f1 = _confidence_curves(is_hit_D, scores, classes, num_truth_C)
        best = _smooth(f1[num_truth_C > 0].mean(axis=0)).argmax() if len(truth) else 0

        shown_D = scores > CONFUSION_CONFIDENCE
        shown_pairs = pairs.where(shown_D[pairs.detection_P] & (pairs.iou_P > CONFUSION_IOU))
        match_D = greedy_match(shown_pairs, scores)

        return DetectionResults(
            class_names=self.class_names,
            num_images=len(counts),
            num_truth_C=num_truth_C,
            **{name: _mean(precision_TRCS[part]) for name, part in COCO_MEANS.items()},
            ap50_95_C=precision_TRC.mean(axis=(0, 1)),
            ap50_C=precision_TRC[0].mean(axis=0),
            confidence=float(CONFIDENCES[best]) if len(truth) else np.nan,
            precision_C=np.where(recall[:, best] == 0, 0, precision[:, best]),
            recall_C=recall[:, best],
            f1_C=f1[:, best],
            precision_curve=precision,
            recall_curve=recall,
            f1_curve=f1,
            pr_curve=precision_TRC[0].T,
            confusion=_confusion(match_D, shown_D, classes, truth_classes, num_classes),
        )


def _table(state: list[Tensor] | Tensor, width: int) -> Tensor:
    """A state as rows. It is a list of tensors, or one tensor after several processes have gathered it."""
    return (dim_zero_cat(state) if len(state) else torch.empty(0)).view(-1, width)


def _coco(found: tuple[NDArray, NDArray], true: tuple[NDArray, NDArray], num_images: int, num_classes: int) -> NDArray:
    """COCO's interpolated precision (T, R, C, size of object); NaN for a class without true boxes.

    Args:
        found: Rows of the detections, and the image of each.
        true: Rows of the true boxes, and the image of each.
        num_images: Images of the whole set.
        num_classes: C.

    Memory: about 1 KB for each box, of at most about `COCO_BOXES_AT_ONCE` boxes and one class at a time.
    """
    precision_TRCS = np.full((len(COCO_IOUS), len(COCO_RECALLS), num_classes, 4), np.nan)
    class_of_each = np.concatenate([rows[:, 4] for rows, _ in (found, true)]).astype(int)
    num_boxes_C = np.bincount(class_of_each, minlength=num_classes)
    group_C = (num_boxes_C.cumsum() - 1).clip(min=0) // COCO_BOXES_AT_ONCE
    for group in np.unique(group_C):
        classes = np.flatnonzero(group_C == group)
        truth, detections = (_of_classes(boxes, classes[0], classes[-1]) for boxes in (true, found))
        if len(truth[0]):
            with no_garbage_collection():
                sides = [CocoBoxes(*boxes, num_images, len(classes)) for boxes in (truth, detections)]
                precision_TRCS[:, :, classes] = coco_precision(sides[0], sides[1])
    return precision_TRCS


def _of_classes(boxes: tuple[NDArray, NDArray], first: int, last: int) -> tuple[NDArray, NDArray]:
    """Rows of the classes from ``first`` to ``last``, whose ids then begin at 0, and the image of each row."""
    rows, image = boxes
    mine = (rows[:, 4] >= first) & (rows[:, 4] <= last)
    rows = rows[mine]
    rows[:, 4] -= first
    return rows, image[mine]


def _confidence_curves(
    is_hit_D: NDArray, scores_D: NDArray, classes_D: NDArray, num_truth_C: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Precision, recall and F1 (C, 1000) over `CONFIDENCES`, interpolated between the scores of the detections."""
    precision, recall = np.full((2, len(num_truth_C), len(CONFIDENCES)), np.nan)
    by_score = np.argsort(-scores_D, kind="stable")
    for c in np.flatnonzero(num_truth_C):
        of_class = by_score[classes_D[by_score] == c]
        if not len(of_class):
            precision[c] = recall[c] = 0
            continue
        hits = is_hit_D[of_class].cumsum()
        # np.interp needs ascending values, so both are negated. Above all scores, precision is 1 and recall is 0.
        falling = -CONFIDENCES, -scores_D[of_class]
        precision[c] = np.interp(*falling, hits / np.arange(1, len(hits) + 1), left=1)
        recall[c] = np.interp(*falling, hits / num_truth_C[c], left=0)
    return precision, recall, 2 * precision * recall / (precision + recall + 1e-16)


def _smooth(curve: NDArray) -> NDArray:
    """Moving average over `SMOOTHING_POINTS`, with the first and the last value repeated at the ends."""
    padded = np.pad(curve, SMOOTHING_POINTS // 2, mode="edge")
    return np.convolve(padded, np.full(SMOOTHING_POINTS, 1 / SMOOTHING_POINTS), mode="valid")


def _confusion(
    match_D: NDArray, shown_D: NDArray, classes_D: NDArray, truth_classes_N: NDArray, num_classes: int
) -> NDArray:
    """Counts [predicted, true] of matches, unmatched detections and missed true boxes."""
    background = num_classes
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    matched_classes = np.append(truth_classes_N, background)[match_D[shown_D]]  # -1, no match, is the background
    np.add.at(confusion, (classes_D[shown_D], matched_classes), 1)
    missed = np.setdiff1d(np.arange(len(truth_classes_N)), match_D)
    np.add.at(confusion, (background, truth_classes_N[missed]), 1)
    return confusion


def _mean(values_C: NDArray) -> float:
    """Mean over the classes that have true boxes; NaN if none has."""
    measured = values_C[~np.isnan(values_C)]
    return float(measured.mean()) if len(measured) else np.nan


def _shown(value: float) -> str:
    """A number with three digits; a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
