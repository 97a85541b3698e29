"""Time of NMS and matching, of yolofit's validation and of Ultralytics' validator, on the same predictions in turns.

Both sides start at decoded boxes and class logits. They end at AP at ten IoUs, precision, recall, F1 over confidence
and the confusion matrix. yolofit also computes COCO's AP by size. The predictions are random and resemble the
predictions of a fairly good network, for several numbers of images. --ckpt_path and --data add the predictions of a
trained network. --coco measures a single case instead: as many images, classes and objects an image as COCO's
validation set. For this case each side runs once more in a process of its own, which measures the growth of its
resident memory beyond the predictions.

Seconds are processor seconds, so that other programs on the machine have little effect. Figures are medians.

    OMP_NUM_THREADS=1 python benchmarks/validation_time.py --out benchmarks/results/validation_time.json
    OMP_NUM_THREADS=1 python benchmarks/validation_time.py --coco --out benchmarks/results/validation_coco.json

(and --ckpt_path best.ckpt --data data.yaml --image-size 640)
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from common import write
from torch import Tensor
from torchvision.ops import box_convert

from data.loading.loader import build_validation_loader
from engine.loop.datamodule import DetectionData
from engine.run.checkpoint import load_network
from engine.validation.evaluation import predict_raw
from engine.validation.metrics import DetectionMetrics
from models.detection.boxes import decode_boxes
from models.detection.postprocess import NmsConfig, detections
from models.network import head_strides

BATCH_SIZE, NUM_ANCHORS = 16, 8400
ROUNDS, ROUNDS_OF_MANY = 5, 2
SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Drawing:
    """The distribution of random predictions and true boxes."""

    num_classes: int
    mean_objects: float
    """Mean number of objects in an image."""
    varies: bool
    """Whether the number of objects differs between images, by a geometric distribution."""
    kept_batches: int
    """Number of different batches; further batches repeat them."""


BOARDS, COCO = Drawing(25, 30, False, 16), Drawing(80, 7.36, True, 8)
NUM_IMAGES, NUM_COCO_IMAGES = (32, 128, 512), 5000
Batch = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]
"""Boxes (B, A, 4), logits (B, C, A), and of each image the true boxes (n, 4) and their classes (n,)."""


def make_batch(seed: int, drawing: Drawing = BOARDS) -> Batch:
    """Random predictions like those of a fairly good network: about ten anchors predict each true box."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.full((BATCH_SIZE,), int(drawing.mean_objects))
    if drawing.varies:
        counts = torch.empty(BATCH_SIZE).exponential_(1 / (drawing.mean_objects + 0.5), generator=generator).long()
    most = max(int(counts.max()), 1)
    corner = torch.rand(BATCH_SIZE, most, 2, generator=generator) * 560
    size = 16 + torch.rand(BATCH_SIZE, most, 2, generator=generator) ** 2 * 120
    truth = torch.cat([corner, corner + size], 2)
    classes = torch.randint(drawing.num_classes, (BATCH_SIZE, most), generator=generator)
    owner = (torch.rand(BATCH_SIZE, NUM_ANCHORS, generator=generator) * counts[:, None]).long()
    boxes = truth.gather(1, owner[..., None].expand(-1, -1, 4)).clone()
    boxes += torch.randn(boxes.shape, generator=generator) * 3
    logits = torch.randn(BATCH_SIZE, drawing.num_classes, NUM_ANCHORS, generator=generator) * 1.2 - 10
    near = torch.arange(NUM_ANCHORS) < 10 * counts[:, None]
    raised = torch.where(near, 4.0 + 8 * torch.rand(BATCH_SIZE, NUM_ANCHORS, generator=generator), 0.0)
    logits.scatter_add_(1, classes.gather(1, owner)[:, None], raised[:, None])
    of_images = list(zip(truth, classes, counts.tolist(), strict=True))
    return boxes, logits, [t[:n] for t, _, n in of_images], [c[:n] for _, c, n in of_images]


def drawn_batches(drawing: Drawing, num_images: int) -> list[Batch]:
    """Batches of ``num_images`` images; the last batch may be smaller."""
    num_batches = -(-num_images // BATCH_SIZE)
    drawn = [make_batch(seed, drawing) for seed in range(min(drawing.kept_batches, num_batches))]
    batches = (drawn * -(-num_batches // len(drawn)))[:num_batches]
    boxes, logits, truth, classes = batches[-1]
    left = num_images - (num_batches - 1) * BATCH_SIZE
    return [*batches[:-1], (boxes[:left], logits[:left], truth[:left], classes[:left])]


@torch.inference_mode()
def network_batches(checkpoint: Path, data_yaml: Path, image_size: int) -> tuple[list[Batch], int]:
    """Predictions of a trained network for the validation images of a data set, and its number of classes."""
    loaded = load_network(checkpoint, "--ckpt_path")
    data = DetectionData(str(data_yaml), BATCH_SIZE, BATCH_SIZE, image_size, workers=0)
    data.setup("validate")
    loader = build_validation_loader(data.validation_dataset, BATCH_SIZE)
    batches = []
    for batch in loader:
        predictions = predict_raw(loaded.network, batch.images, "fp32")
        boxes = decode_boxes(predictions, head_strides(loaded.network))
        counts = torch.bincount(batch.image_index, minlength=len(batch)).tolist()
        truth, classes = batch.boxes_xyxy_px.split(counts), batch.classes.split(counts)
        batches.append((boxes, predictions["scores"], list(truth), list(classes)))
    return batches, len(loaded.class_names)


def ours(batches: list[Batch], num_classes: int) -> dict[str, float]:
    """Seconds of each part."""
    seconds = dict.fromkeys(("nms", "match"), 0.0)
    metrics = DetectionMetrics([str(c) for c in range(num_classes)])
    for boxes, logits, truth, classes in batches:
        start = time.process_time()
        found = detections(boxes, logits, NmsConfig())
        middle = time.process_time()
        counts = torch.tensor([len(image) for image in classes])
        image_index = torch.arange(len(classes)).repeat_interleave(counts)
        metrics.update(found, torch.cat(truth), torch.cat(classes), image_index)
        seconds["nms"] += middle - start
        seconds["match"] += time.process_time() - middle
    start = time.process_time()
    results = metrics.compute()
    seconds["match"] += time.process_time() - start
    return seconds | {"map50": results.map50, "map50_95": results.map50_95}


def ultralytics(batches: list[Batch], num_classes: int) -> dict[str, float]:
    """Seconds of each part of Ultralytics' validation, with the same loop over images as `DetectionValidator`."""
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import ConfusionMatrix, DetMetrics, box_iou
    from ultralytics.utils.nms import non_max_suppression

    seconds = dict.fromkeys(("nms", "match"), 0.0)
    names = {c: str(c) for c in range(num_classes)}
    metrics, confusion = DetMetrics(names), ConfusionMatrix(names=names)
    validator = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    for boxes, logits, truth, classes in batches:
        center_boxes = box_convert(boxes, "xyxy", "cxcywh").transpose(1, 2)
        start = time.process_time()
        predictions = torch.cat([center_boxes, logits.sigmoid()], 1)  # theirs is in the head, ours in NMS
        found = non_max_suppression(predictions, 0.001, 0.7, nc=num_classes, multi_label=True, max_det=300)
        middle = time.process_time()
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
        seconds["match"] += time.process_time() - middle
    start = time.process_time()
    metrics.process()
    seconds["match"] += time.process_time() - start
    return seconds | {"map50": float(metrics.box.map50), "map50_95": float(metrics.box.map)}


SIDES: dict[str, Callable[[list[Batch], int], dict[str, float]]] = {"yolofit": ours, "ultralytics": ultralytics}


def measure(batches: list[Batch], num_classes: int, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Medians of each side, and of the ratios of neighboring runs."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for side in SIDES.values():
        side(batches[:8], num_classes)  # warms up
    for _ in range(rounds):
        for name, side in SIDES.items():
            seconds = side(batches, num_classes)
            runs[name].append(seconds | {"both": seconds["nms"] + seconds["match"]})
    medians = {
        name: {key: statistics.median(run[key] for run in of_side) for key in of_side[0]}
        for name, of_side in runs.items()
    }
    pairs = list(zip(runs["yolofit"], runs["ultralytics"], strict=True))
    ratios = {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in ("nms", "match", "both")}
    print(ratios, flush=True)
    return medians | {"median_ratio_to_ultralytics": ratios}


def grown_bytes(name: str, drawing: Drawing, num_images: int) -> int:
    """The largest growth of the resident memory of this new process while one side works."""
    torch.set_num_threads(1)
    batches, process = drawn_batches(drawing, num_images), psutil.Process()
    SIDES[name](batches[:1], drawing.num_classes)  # libraries are loaded
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    SIDES[name](batches, drawing.num_classes)
    done.set()
    watcher.join()
    return peak - before


def measure_coco() -> dict[str, dict[str, float]]:
    """The case as large as COCO, with the memory that each side takes."""
    found = measure(drawn_batches(COCO, NUM_COCO_IMAGES), COCO.num_classes, ROUNDS_OF_MANY)
    for name in SIDES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name]["grown_bytes"] = pool.submit(grown_bytes, name, COCO, NUM_COCO_IMAGES).result()
        print(name, f"{found[name]['grown_bytes'] / 2**20:.0f} MiB", flush=True)
    return found


def main() -> None:
    """Measure each set of predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ckpt_path", type=Path, help="weights of a trained network")
    parser.add_argument("--data", type=Path, help="data.yaml with its validation images")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--coco", action="store_true", help="only the case that is as large as COCO's validation set")
    options = parser.parse_args()
    drawing, rounds = (COCO, ROUNDS_OF_MANY) if options.coco else (BOARDS, ROUNDS)
    drawn_as = f"{NUM_ANCHORS} anchors, {drawing.num_classes} classes, {drawing.mean_objects} objects an image"
    results = {f"drawn, {NUM_COCO_IMAGES} images": measure_coco()} if options.coco else measure_smaller(options)
    what = f"NMS and matching in seconds of CPU time; drawn: {drawn_as}"
    write(options.out, what, results | {"rounds": rounds})


def measure_smaller(options: argparse.Namespace) -> dict[str, Any]:
    """Predictions of a trained network, if one is given, and random predictions for several numbers of images."""
    results = {}
    if options.ckpt_path:
        batches, num_classes = network_batches(options.ckpt_path, options.data, options.image_size)
        num_images = sum(len(batch[2]) for batch in batches)
        name = f"trained network, {num_images} images of {options.image_size} px, {num_classes} classes"
        results[name] = measure(batches, num_classes)
    for num_images in NUM_IMAGES:
        results[f"drawn, {num_images} images"] = measure(drawn_batches(BOARDS, num_images), BOARDS.num_classes)
    return results


if __name__ == "__main__":
    main()
