"""COCO's precision, computed by faster-coco-eval on boxes in arrays.

The usual input of COCO's evaluation is a dictionary for each box. Building and indexing these takes longer than the
evaluation itself. Here each dictionary has only what the evaluation reads, and IoUs come from slices of arrays.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from faster_coco_eval import COCOeval_faster, mask
from numpy.typing import NDArray

COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0, 1, 101)


class CocoBoxes:
    """The part of a COCO data set that its evaluation reads. Boxes are sorted by image and class.

    Memory: about 1 KB for each box, including the results of faster-coco-eval.
    """

    def __init__(self, rows: NDArray, image: NDArray, num_images: int, num_classes: int) -> None:
        """Sort the boxes.

        Args:
            rows: (N, 5) or (N, 6): x1, y1, x2, y2 in pixels, class and, for detections, score.
            image: (N,) the image of each box.
            num_images: Images of the whole set.
            num_classes: Classes of the whole set.
        """
        self.num_images, self.num_classes = num_images, num_classes
        scores = rows[:, 5].astype(np.float64) if rows.shape[1] > 5 else np.ones(len(rows))
        group = image * num_classes + rows[:, 4].astype(np.int64)
        order = np.lexsort((-scores, group))
        self._starts = np.searchsorted(group[order], np.arange(num_images * num_classes + 1))

        self._boxes_xywh = rows[order, :4].astype(np.float64)
        self._boxes_xywh[:, 2:] -= self._boxes_xywh[:, :2]
        columns = (image[order], rows[order, 4].astype(int), self._boxes_xywh[:, 2:].prod(1), scores[order])
        self._annotations = [
            {"id": number, "image_id": i, "category_id": c, "area": area, "score": score, "iscrowd": 0}
            for number, (i, c, area, score) in enumerate(zip(*(column.tolist() for column in columns), strict=True), 1)
        ]

    def of(self, image: int, category: int) -> NDArray:
        """Boxes (N, 4) of an image and class: left, top, width and height in pixels, by descending score."""
        group = image * self.num_classes + category
        return self._boxes_xywh[self._starts[group] : self._starts[group + 1]]

    @property
    def most_of_a_class(self) -> int:
        """The largest number of boxes of one class in one image."""
        return int(np.diff(self._starts).max(initial=0))

    # COCO's evaluation calls these methods by these names.

    def getImgIds(self) -> list[int]:  # noqa: D102
        return list(range(self.num_images))

    def getCatIds(self) -> list[int]:  # noqa: D102
        return list(range(self.num_classes))

    def getAnnIds(self, imgIds: list[int], catIds: list[int]) -> range:  # noqa: D102
        return range(len(self._annotations))

    def loadAnns(self, ids: range) -> list[dict]:  # noqa: D102
        return self._annotations


class _Evaluation(COCOeval_faster):
    """COCO's evaluation with IoUs from arrays."""

    def computeIoU(self, imgId: int, catId: int) -> NDArray:
        """IoUs (detections, truth) of an image and class."""
        truth = self.cocoGt.of(imgId, catId)
        return mask.iou(self.cocoDt.of(imgId, catId), truth, [0] * len(truth))


def coco_precision(truth: CocoBoxes, found: CocoBoxes) -> NDArray:
    """Interpolated precision, float64 (IoU, recall, class, size of object); NaN for a class without true boxes.

    The sizes are COCO's: any, small (up to 32 x 32 px), medium, large (from 96 x 96 px).

    Args:
        truth: The true boxes, at least one.
        found: All detections in the same images.
    """
    evaluation = _Evaluation(truth, found, "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs, evaluation.params.recThrs = COCO_IOUS, COCO_RECALLS
    evaluation.params.maxDets = [max(found.most_of_a_class, 1)]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]
    return np.where(precision < 0, np.nan, precision)  # COCO marks a missing value with -1


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch Python's garbage collection off, because many new dictionaries would start it again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
