"""Peak bytes of one YOLO11l training step per recompute level, followed storage by storage on the meta device.

python benchmarks/recompute_memory.py --out benchmarks/results/recompute_memory.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from engine.memory.simulate import simulate_step
from models.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides
from models.recompute import apply_recompute

CELLS = ((16, 640), (32, 640), (32, 800))
LEVELS = ("none", "elementwise", "block")
NUM_CLASSES = 25
BOXES_PER_IMAGE = 10


def step_memory(level: str, num_images: int, image_size: int) -> dict:
    """Peak and breakdown of forward, loss, backward and AdamW step under fp16 autocast."""
    network = build_network("yolo11l", NUM_CLASSES)
    loss = DetectionLoss(head_strides(network))
    network = network.to("meta")
    apply_recompute(network, level)
    num_boxes = num_images * BOXES_PER_IMAGE
    boxes = torch.empty(num_boxes, 4, device="meta")
    indices = torch.empty(num_boxes, dtype=torch.int64, device="meta")

    def loss_of(predictions: dict) -> torch.Tensor:
        return LossGains().apply(loss(predictions, boxes, indices, indices)).sum()

    images = torch.empty(num_images, 3, image_size, image_size, dtype=torch.float16, device="meta")
    # The fused kernel does not exist on meta; parameter by parameter comes nearest to it, with small temporaries.
    optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    step = simulate_step(network, images, loss_of, torch.float16, optimizer)
    return {"peak_bytes": step.peak_bytes, "breakdown_bytes": step.breakdown_bytes}


def main() -> None:
    """Measure every cell and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = []
    for num_images, image_size in CELLS:
        for level in LEVELS:
            row = {"micro_batch": num_images, "image_size": image_size, "recompute": level}
            rows.append(row | step_memory(level, num_images, image_size))
            ratio = rows[-1]["peak_bytes"] / rows[-1 - LEVELS.index(level)]["peak_bytes"]
            rows[-1]["of_none"] = ratio
            peak_gib = rows[-1]["peak_bytes"] / 2**30
            print(f"{num_images} x {image_size} {level:12} {peak_gib:6.2f} GiB  {ratio:.3f} x none")
    about = {"what": "yolo11l, fp16 autocast, 25 classes, forward + loss + backward + AdamW"}
    about |= {
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "device": "meta",
    }
    out.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
