"""Peak bytes of assignment, loss and the loss's backward, without the predictions, on the meta device.

python benchmarks/loss_memory.py --out benchmarks/results/loss_memory.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import write

from engine.memory.storages import StorageTracker
from models.detection.loss import DetectionLoss, LossGains

NUM_IMAGES = 32
IMAGE_SIZE = 640
STRIDES = (8, 16, 32)
# The name of the scene, and the number of boxes of each image.
SCENES = (
    ("10 in every image", [10] * NUM_IMAGES),
    ("300 in one image, 10 in each other", [300] + [10] * (NUM_IMAGES - 1)),
    ("300 in every image", [300] * NUM_IMAGES),
    ("1000 in one image, none in the others", [1000] + [0] * (NUM_IMAGES - 1)),
)


def loss_memory(num_classes: int, box_counts: list[int]) -> dict:
    """Peak bytes of forward and of backward, without the fp16 predictions and the true boxes."""
    cells = [IMAGE_SIZE // stride for stride in STRIDES]
    num_anchors = sum(n * n for n in cells)
    tracker = StorageTracker("meta")
    predictions = {
        "boxes": torch.empty(NUM_IMAGES, 64, num_anchors, dtype=torch.float16, device="meta", requires_grad=True),
        "scores": torch.empty(
            NUM_IMAGES, num_classes, num_anchors, dtype=torch.float16, device="meta", requires_grad=True
        ),
        "feats": [torch.empty(NUM_IMAGES, 1, n, n, device="meta") for n in cells],
    }
    num_boxes = sum(box_counts)
    targets = (
        torch.empty(num_boxes, 4, device="meta"),
        torch.empty(num_boxes, dtype=torch.int64, device="meta"),
        torch.empty(num_boxes, dtype=torch.int64, device="meta"),
    )
    logits = [predictions["boxes"], predictions["scores"]]
    tracker.track([*logits, *targets], "before")
    before = tracker.live_bytes
    with tracker:
        sums = DetectionLoss(STRIDES)(predictions, *targets)
        forward_bytes, kept_bytes = tracker.peak_bytes - before, tracker.live_bytes - before
        tracker.reset_peak()
        LossGains().total(sums, sums.normaliser).backward()
    gradient_bytes = sum(tensor.grad.nbytes for tensor in logits)
    return {
        "predictions_bytes": sum(tensor.nbytes for tensor in logits),
        "forward_peak_bytes": forward_bytes,
        "kept_for_backward_bytes": kept_bytes,
        "backward_peak_bytes": tracker.peak_bytes - before,
        "of_which_gradients_of_the_predictions_bytes": gradient_bytes,
    }


def main() -> None:
    """Measure every scene and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = []
    for num_classes in (25, 80):
        for what, box_counts in SCENES:
            row = {"classes": num_classes, "boxes": what, "num_boxes": sum(box_counts)}
            rows.append(row | loss_memory(num_classes, box_counts))
            peak_mib = max(rows[-1]["forward_peak_bytes"], rows[-1]["backward_peak_bytes"]) / 2**20
            print(f"{num_classes} classes, {what:40} {peak_mib:7.1f} MiB above the predictions")
    what = f"assignment + loss + backward above the predictions, {NUM_IMAGES} x {IMAGE_SIZE}, fp16; on the meta device"
    write(out, what, {"rows": rows}, quiet=True)


if __name__ == "__main__":
    main()
