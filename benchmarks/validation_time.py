"""NMS and matching against those of Ultralytics' validator, on the same predictions: alternating, medians.

Both sides start at decoded boxes and class logits and end at AP at ten IoUs, precision, recall, F1 over confidence
and the confusion matrix. Ours also computes COCO's AP by size.

python benchmarks/validation_time.py --out benchmarks/results/validation_time.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from engine.metrics import DetectionMetrics
from models.postprocess import NmsConfig, detections

NUM_BATCHES, BATCH_SIZE, NUM_ANCHORS, NUM_CLASSES, NUM_TRUTH = 16, 16, 8400, 25, 30
ROUNDS = 15
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes (B, A, 4), logits (B, C, A), true boxes (B, N, 4), classes


def make_batch(seed: int) -> Batch:
    """What a fairly good network says: about ten anchors near each true box, the rest nearly silent."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(BATCH_SIZE, NUM_TRUTH, 2, generator=generator) * 560
    size = 16 + torch.rand(BATCH_SIZE, NUM_TRUTH, 2, generator=generator) ** 2 * 120
    truth = torch.cat([corner, corner + size], 2)
    classes = torch.randint(NUM_CLASSES, (BATCH_SIZE, NUM_TRUTH), generator=generator)
    owner = torch.randint(NUM_TRUTH, (BATCH_SIZE, NUM_ANCHORS), generator=generator)
    boxes = truth.gather(1, owner[..., None].expand(-1, -1, 4)).clone()
    boxes += torch.randn(boxes.shape, generator=generator) * 3
    logits = torch.randn(BATCH_SIZE, NUM_CLASSES, NUM_ANCHORS, generator=generator) * 1.2 - 10
    near = torch.arange(NUM_ANCHORS) < 10 * NUM_TRUTH
    raised = torch.where(near, 4.0 + 8 * torch.rand(BATCH_SIZE, NUM_ANCHORS, generator=generator), 0.0)
    logits.scatter_add_(1, classes.gather(1, owner)[:, None], raised[:, None])
    return boxes, logits, truth, classes


def ours(batches: list[Batch]) -> dict[str, float]:
    """Seconds of each part."""
    seconds = dict.fromkeys(("nms", "match"), 0.0)
    metrics = DetectionMetrics([str(c) for c in range(NUM_CLASSES)])
    image_index = torch.arange(BATCH_SIZE).repeat_interleave(NUM_TRUTH)
    for boxes, logits, truth, classes in batches:
        start = time.perf_counter()
        found = detections(boxes, logits, NmsConfig())
        middle = time.perf_counter()
        metrics.update(found, truth.flatten(0, 1), classes.flatten(), image_index)
        seconds["nms"] += middle - start
        seconds["match"] += time.perf_counter() - middle
    start = time.perf_counter()
    results = metrics.compute()
    seconds["match"] += time.perf_counter() - start
    return seconds | {"map50": results.map50, "map50_95": results.map50_95}


def ultralytics(batches: list[Batch]) -> dict[str, float]:
    """Seconds of each part of what `DetectionValidator` calls; its loop over images is repeated here."""
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import ConfusionMatrix, DetMetrics, box_iou
    from ultralytics.utils.nms import non_max_suppression

    seconds = dict.fromkeys(("nms", "match"), 0.0)
    names = {c: str(c) for c in range(NUM_CLASSES)}
    metrics, confusion = DetMetrics(names), ConfusionMatrix(names=names)
    validator = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    for boxes, logits, truth, classes in batches:
        centre_boxes = box_convert(boxes, "xyxy", "cxcywh").transpose(1, 2)
        start = time.perf_counter()
        predictions = torch.cat([centre_boxes, logits.sigmoid()], 1)  # their head does this, our NMS the sigmoid
        found = non_max_suppression(predictions, 0.001, 0.7, nc=NUM_CLASSES, multi_label=True, max_det=300)
        middle = time.perf_counter()
        for rows, true_boxes, true_classes in zip(found, truth, classes, strict=True):
            iou = box_iou(true_boxes, rows[:, :4])
            hits = BaseValidator.match_predictions(validator, rows[:, 5], true_classes, iou)
            of_classes = true_classes.numpy()
            stat = {"tp": hits.numpy(), "conf": rows[:, 4].numpy(), "pred_cls": rows[:, 5].numpy()}
            stat |= {"target_cls": of_classes, "target_img": np.unique(of_classes), "im_name": ""}
            metrics.update_stats(stat)
            prediction = {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5]}
            confusion.process_batch(prediction, {"bboxes": true_boxes, "cls": true_classes})
        seconds["nms"] += middle - start
        seconds["match"] += time.perf_counter() - middle
    start = time.perf_counter()
    metrics.process()
    seconds["match"] += time.perf_counter() - start
    return seconds | {"map50": float(metrics.box.map50), "map50_95": float(metrics.box.map)}


def main() -> None:
    """Time both in turn and write medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    batches = [make_batch(seed) for seed in range(NUM_BATCHES)]
    sides: dict[str, Callable[[list[Batch]], dict[str, float]]] = {"yolofit": ours, "ultralytics": ultralytics}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for round_number in range(ROUNDS + 1):
        for name, side in sides.items():
            seconds = side(batches)
            if round_number:  # the first one warms up
                runs[name].append(seconds | {"both": seconds["nms"] + seconds["match"]})
    medians = {
        name: {key: statistics.median(run[key] for run in of_side) for key in of_side[0]}
        for name, of_side in runs.items()
    }
    pairs = list(zip(runs["yolofit"], runs["ultralytics"], strict=True))
    ratios = {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in ("nms", "match", "both")}
    print(json.dumps({"medians": medians, "ratios": ratios}, indent=2))
    about = {
        "what": f"{NUM_BATCHES} x {BATCH_SIZE} images, {NUM_ANCHORS} anchors, {NUM_CLASSES} classes, "
        f"{NUM_TRUTH} objects an image, CPU, seconds",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": ROUNDS,
    }
    out.write_text(json.dumps(about | {"medians": medians, "median_ratio_to_ultralytics": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
