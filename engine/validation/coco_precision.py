"""COCO's precision, computed by faster-coco-eval on boxes that stay in arrays.

COCO's own way in is a dictionary for each box, indexed and looked up several times over: more work than the evaluation
itself. Here it gets what it needs of each box (image, class, area, score), and IoUs from slices of the arrays.
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
    """As much of a COCO data set as its evaluation asks for, the boxes of an image and class side by side.

    Memory: about 1 KB a box, with what faster-coco-eval makes of it.
    """

    def __init__(self, rows: NDArray, image: NDArray, num_images: int, num_classes: int) -> None:
        """Sort the boxes.

        Args:
            rows: (n, 5) or (n, 6): x1, y1, x2, y2 in pixels, class and, for detections, score.
            image: (n,) the image of each.
            num_images: Of the whole set.
            num_classes: Of the whole set.
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
        """Boxes (n, 4) of an image and class, left, top, width and height, by descending score."""
        group = image * self.num_classes + category
        return self._boxes_xywh[self._starts[group] : self._starts[group + 1]]

    @property
    def most_of_a_class(self) -> int:
        """Boxes of the class and image that have the most."""
        return int(np.diff(self._starts).max(initial=0))

    # What COCO's evaluation calls; the names are its.

    def getImgIds(self) -> list[int]:  # noqa: D102
        return list(range(self.num_images))

    def getCatIds(self) -> list[int]:  # noqa: D102
        return list(range(self.num_classes))

    def getAnnIds(self, imgIds: list[int], catIds: list[int]) -> range:  # noqa: D102
        return range(len(self._annotations))

    def loadAnns(self, ids: range) -> list[dict]:  # noqa: D102
        return self._annotations


class _Evaluation(COCOeval_faster):
    """COCO's evaluation, with IoUs from arrays."""

    def computeIoU(self, imgId: int, catId: int) -> NDArray:
        """IoUs (detections, truth) of an image and class."""
        truth = self.cocoGt.of(imgId, catId)
        return mask.iou(self.cocoDt.of(imgId, catId), truth, [0] * len(truth))


def coco_precision(truth: CocoBoxes, found: CocoBoxes) -> NDArray:
    """Interpolated precision (IoU, recall, class, size of object); NaN where there is no truth.

    Sizes are COCO's: any, small (up to 32 x 32 px), medium, large (from 96 x 96 px).

    Args:
        truth: At least one box.
        found: Of the same images and classes; all of them count.
    """
    evaluation = _Evaluation(truth, found, "bbox", print_function=lambda *_: None)
    evaluation.params.iouThrs, evaluation.params.recThrs = COCO_IOUS, COCO_RECALLS
    evaluation.params.maxDets = [max(found.most_of_a_class, 1)]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0]
    return np.where(precision < 0, np.nan, precision)  # -1 is COCO's mark for no truth


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A dictionary for each box makes Python look for cycles again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
