"""Validation results without a network: the truth, moved a little, with misses and false detections."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from engine.validation.metrics import DetectionMetrics
from models.detection.postprocess import Detections

HOSTILE_NAME = "<script>alert('1')</script> & $x$"


def make_metrics(class_names: list[str], num_images: int = 20, skill: float = 0.8, seed: int = 0) -> DetectionMetrics:
    """Metrics that have seen images of 200 x 200 px with six true boxes each, of which ``skill`` are found."""
    rng = np.random.default_rng(seed)
    metrics = DetectionMetrics(class_names)
    for _ in range(num_images):
        corners = rng.uniform(0, 150, (6, 2))
        truth = np.concatenate([corners, corners + rng.uniform(15, 50, (6, 2))], 1).astype(np.float32)
        classes = rng.integers(len(class_names), size=6)
        is_found = rng.random(6) < skill
        jitter = rng.normal(0, 2, (6, 4)).astype(np.float32)
        boxes = np.concatenate([(truth + jitter)[is_found], truth[:1] + 60])
        scores = np.concatenate([rng.uniform(0.3, 1, is_found.sum()), rng.uniform(0.1, 0.9, 1)])
        found_classes = np.concatenate([classes[is_found], rng.integers(len(class_names), size=1)])
        found = Detections(*(torch.from_numpy(x) for x in (boxes, scores.astype(np.float32), found_classes)))
        metrics.update([found], torch.from_numpy(truth), torch.from_numpy(classes), torch.zeros(6, dtype=torch.long))
    return metrics


def make_pictures(folder: Path, num_images: int = 20) -> list[str]:
    """Noise pictures for these images, in ``folder``; returns their paths."""
    rng = np.random.default_rng(1)
    paths = [str(folder / f"image {number}.png") for number in range(num_images)]
    for path in paths:
        cv2.imwrite(path, rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    return paths
