"""An optimizer step in channels_last against contiguous: paired, alternating, medians.

python benchmarks/layouts.py --out benchmarks/results/layouts_cpu.json
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from common import NUM_CLASSES, alternate, compare, random_window, training_step, write

from models.network import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = build_network("yolo11n", NUM_CLASSES)
    window = random_window(arguments.images, arguments.image_size)
    functions = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        converted = copy.deepcopy(network).to(memory_format=layout)
        step = training_step(converted, arguments.images, arguments.images)
        functions[name] = lambda step=step: step.run(window)
    seconds = alternate(functions, arguments.rounds)
    what = f"yolo11n, {arguments.images} x {arguments.image_size}, fp32: an optimizer step"
    write(arguments.out, what, {"rounds": arguments.rounds} | compare(seconds, "contiguous"))


if __name__ == "__main__":
    main()
