"""CPU step time of the recompute levels against `none`: paired in one process, alternating, medians.

python benchmarks/recompute_time.py --out benchmarks/results/recompute_time.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch

from models.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides
from models.recompute import apply_recompute

LEVELS = ("none", "elementwise", "block")
ROUNDS = 9


def main() -> None:
    """Time forward, loss and backward of yolo11n on 8 images of 320 pixels, in fp32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    network = build_network("yolo11n", 25)
    loss = DetectionLoss(head_strides(network))
    images = torch.rand(8, 3, 320, 320)
    boxes = torch.tensor([[40.0, 40.0, 120.0, 100.0]]).repeat(40, 1)
    image_index = torch.arange(40) // 5
    networks = {level: copy.deepcopy(network) for level in LEVELS}
    for level, changed in networks.items():
        apply_recompute(changed, level)
    seconds: dict[str, list[float]] = {level: [] for level in LEVELS}
    for _ in range(ROUNDS + 1):
        for level, changed in networks.items():
            start = time.perf_counter()
            sums = loss(changed(images), boxes, image_index % 25, image_index)
            LossGains().apply(sums).sum().backward()
            seconds[level].append(time.perf_counter() - start)
    medians = {level: statistics.median(times[1:]) for level, times in seconds.items()}
    ratios = {
        level: statistics.median(a / b for a, b in zip(times[1:], seconds["none"][1:], strict=True))
        for level, times in seconds.items()
    }
    print(medians, ratios)
    about = {"what": "yolo11n, 8 x 320, fp32, CPU, forward + loss + backward", "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rounds": ROUNDS}
    out.write_text(json.dumps(about | {"median_seconds": medians, "median_ratio_to_none": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
