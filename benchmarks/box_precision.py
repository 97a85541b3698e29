"""Box loss of almost perfect predictions in each precision, with Ultralytics' loss and with yolofit's.

    python benchmarks/box_precision.py --out benchmarks/results/box_precision_cpu.json

The logits decode to the true boxes and are rounded to the precision. Without rounding 1 - CIoU would be 0. Both losses
get the same logits under the same autocast. The result is the lowest loss that training can reach.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from types import SimpleNamespace

import torch
from common import quartiles, write
from step_time import their_batch
from torch import Tensor
from ultralytics.utils.loss import v8DetectionLoss

from data.loading.batch import Batch
from models.detection.boxes import anchor_points
from models.detection.loss import DetectionLoss
from models.network import build_network, head_strides

NUM_IMAGES, BOXES_PER_IMAGE, NUM_CLASSES, ROUNDS = 4, 20, 3, 5
NUM_BINS = 16  # of YOLO11's head
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIDES_PX = (12.0, 96.0)
ABSENT = -30.0  # logit of all other bins and classes


def random_boxes(image_size: int, generator: torch.Generator) -> Batch:
    """Small boxes of one class at random places."""
    num_boxes = NUM_IMAGES * BOXES_PER_IMAGE
    low, high = SIDES_PX
    sides = torch.rand(num_boxes, 2, generator=generator) * (high - low) + low
    corner = torch.rand(num_boxes, 2, generator=generator) * (image_size - sides)
    return Batch(
        images=torch.empty(NUM_IMAGES, 3, image_size, image_size, dtype=torch.uint8),
        boxes_xyxy_px=torch.cat([corner, corner + sides], 1),
        classes=torch.zeros(num_boxes, dtype=torch.int64),
        image_index=torch.arange(num_boxes) // BOXES_PER_IMAGE,
        names=[],
    )


def perfect_logits(batch: Batch, strides: tuple[int, ...], dtype: torch.dtype) -> dict:
    """Raw predictions in which every anchor inside a true box decodes to that box."""
    size = batch.images.shape[-1]
    cells = [(size // stride, size // stride) for stride in strides]
    points_A2, stride_A = anchor_points(cells, strides, torch.device("cpu"), torch.float64)
    boxes, scores = [], []
    for image in range(NUM_IMAGES):
        truth_N4 = batch.boxes_xyxy_px[batch.image_index == image].double()
        sides_AN4 = torch.cat([points_A2[:, None] - truth_N4[:, :2], truth_N4[:, 2:] - points_A2[:, None]], 2)
        sides_AN4 = sides_AN4 / stride_A[:, None, None]
        fits_AN = (sides_AN4.amin(2) > 0) & (sides_AN4.amax(2) < NUM_BINS - 1.01)
        distance_A4 = sides_AN4[torch.arange(len(points_A2)), fits_AN.int().argmax(1)].clamp(0, NUM_BINS - 1.01)
        boxes.append(bin_logits(distance_A4).flatten(1).T)
        scores.append(torch.where(fits_AN.any(1), 4.0, ABSENT).expand(NUM_CLASSES, -1).clone())
        scores[-1][1:] = ABSENT
    return {
        "boxes": torch.stack(boxes).to(dtype),
        "scores": torch.stack(scores).to(dtype),
        "feats": [torch.empty(NUM_IMAGES, 1, *cell, dtype=dtype) for cell in cells],
    }


def bin_logits(distance_A4: Tensor) -> Tensor:
    """Logits (A, 4, R) of a distribution over bins whose mean is the distance."""
    bins = torch.arange(NUM_BINS, dtype=distance_A4.dtype)
    share = (1 - (bins - distance_A4[..., None]).abs()).clamp(min=0)
    return share.log().clamp(min=ABSENT)


def box_losses(image_size: int, precision: str, seed: int) -> dict[str, float]:
    """Mean 1 - CIoU of the assigned anchors, weighted by their target scores, for both losses."""
    batch = random_boxes(image_size, torch.Generator().manual_seed(seed))
    network = build_network("yolo11n", NUM_CLASSES)
    network.args = SimpleNamespace(box=1.0, cls=1.0, dfl=1.0)
    strides, dtype = head_strides(network), PRECISIONS[precision]
    predictions = perfect_logits(batch, strides, dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=precision != "fp32"):
        sums = DetectionLoss(strides)(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)
        _, theirs = v8DetectionLoss(network)(predictions, their_batch(batch))
    return {"yolofit": (sums.box / sums.normaliser.clamp(min=1)).item(), "ultralytics": float(theirs["box_loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = []
    for image_size in (640, 1280):
        for precision in PRECISIONS:
            losses = [box_losses(image_size, precision, seed) for seed in range(ROUNDS)]
            row: dict = {"image_size": image_size, "precision": precision}
            for name in losses[0]:
                values = [loss[name] for loss in losses]
                row[name] = statistics.median(values)
                row[f"{name}_quartiles"] = quartiles(values)
            rows.append(row)
    what = (
        f"1 - CIoU of all but perfect boxes with sides of {SIDES_PX[0]:.0f} to {SIDES_PX[1]:.0f} px: "
        f"{ROUNDS} x {NUM_IMAGES} images, {BOXES_PER_IMAGE} boxes each"
    )
    write(out, what, {"rows": rows})


if __name__ == "__main__":
    main()
