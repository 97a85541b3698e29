"""Detections and true boxes of each validation image, and which of the detections are mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from engine.validation.matching import Pairs, greedy_match
from engine.validation.metrics import MATCH_IOU, DetectionMetrics

MISSED, FALSE, RIGHT = "missed", "false", "right"


@dataclass(frozen=True)
class ImageRecord:
    """One validation image. Boxes are corners in pixels of the original image."""

    path: str
    detections: NDArray
    """float32 (N, 6): box, class, score."""
    truth: NDArray
    """float32 (M, 5): box, class."""

    def above(self, confidence: float) -> NDArray:
        """The detections whose score is above ``confidence``."""
        return self.detections[self.detections[:, 5] > confidence]


@dataclass(frozen=True)
class Judged:
    """A detection, or a true box that was missed."""

    kind: str
    """`MISSED`, `FALSE` or `RIGHT`."""
    box_xyxy_px: NDArray
    class_id: int
    score: float
    """Confidence of a detection; 1 for a missed box."""


@dataclass(frozen=True)
class Verdict:
    """What is right and wrong in one image."""

    items: list[Judged]

    @property
    def num_missed(self) -> int:
        """True boxes that no detection matches."""
        return sum(item.kind == MISSED for item in self.items)

    @property
    def num_false(self) -> int:
        """Detections that match no true box."""
        return sum(item.kind == FALSE for item in self.items)

    @property
    def severity(self) -> float:
        """The sum of 1 for each missed box and of the confidence of each false detection."""
        return sum(item.score for item in self.items if item.kind != RIGHT)


def collect_records(metrics: DetectionMetrics, paths: Sequence[str]) -> list[ImageRecord]:
    """The records of all images that this process has added to the metrics, in the order of ``paths``.

    Raises:
        ValueError: If there are not as many images as paths.
    """
    states = ((metrics.detections, 6), (metrics.truth, 5), (metrics.counts, 2))
    detections, truth, counts = (torch.cat([torch.empty(0), *rows]).view(-1, width).numpy() for rows, width in states)
    if len(counts) != len(paths):
        raise ValueError(f"{len(counts)} images in the metrics, {len(paths)} paths")
    ends = counts.astype(int).cumsum(axis=0)  # np.split at all ends gives one more part, which is empty
    parts = np.split(detections, ends[:, 0])[:-1], np.split(truth, ends[:, 1])[:-1]
    return [ImageRecord(*record) for record in zip(paths, *parts, strict=True)]


def judge(record: ImageRecord, confidence: float) -> Verdict:
    """Match detections above ``confidence`` with true boxes of their class at IoU 0.5, the highest score first."""
    found = record.above(confidence)
    overlap = box_iou(torch.from_numpy(found[:, :4]), torch.from_numpy(record.truth[:, :4])).numpy()
    same_class = found[:, None, 4] == record.truth[None, :, 4]
    rows, columns = np.nonzero((overlap >= MATCH_IOU) & same_class)
    match = greedy_match(Pairs(rows, columns, overlap[rows, columns]), found[:, 5])
    items = [
        Judged(RIGHT if match[i] >= 0 else FALSE, row[:4], int(row[4]), float(row[5])) for i, row in enumerate(found)
    ]
    missed = np.setdiff1d(np.arange(len(record.truth)), match)
    items += [Judged(MISSED, record.truth[i, :4], int(record.truth[i, 4]), 1.0) for i in missed]
    return Verdict(items)
