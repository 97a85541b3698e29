"""Growth of a training step's memory and time with micro-batch, image size, boxes per image and network.

    python benchmarks/growth.py --out benchmarks/results/growth_cpu.json

`memory`: simulated on the meta device in fp16, with YOLO11l and `none`; every network at every recompute level, too.
`step`: on the CPU in fp32, with yolo11n unless the network varies: processor seconds of one thread and the peak of
tensors, of yolofit's step (`none`) and of Ultralytics' step in turns. A fitted exponent of 1 means proportional growth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from common import NUM_CLASSES, alternate, cpu_peak_bytes, quartiles, random_window, step_tensors, training_step, write
from step_time import UltralyticsLoop

from engine.planning.simulation import StepSpec, simulate_step
from engine.training.config import ModelConfig
from models.network import build_network
from models.recompute.levels import Level

MICRO_BATCH, BASE = 16, StepSpec(ModelConfig("yolo11l", precision="fp16"))
MEMORY_AXES = {
    "micro_batch": (1, 2, 4, 8, 16, 32, 64),
    "image_size": (320, 480, 640, 800, 960, 1280),
    "boxes_per_image": (1, 10, 50, 200, 800),
}
STEP_BASE = {"network": "yolo11n", "micro_batch": 2, "image_size": 160, "boxes_per_image": 12}
STEP_AXES = {
    "micro_batch": (1, 2, 4, 8),
    "image_size": (96, 160, 224, 320),
    "boxes_per_image": (5, 20, 80, 320),
    "network": ("yolo11n", "yolo11s", "yolo11m"),
}


def memory() -> dict[str, Any]:
    """Peak bytes of the simulated step along each axis."""
    found: dict[str, Any] = {}
    for axis, values in MEMORY_AXES.items():
        peaks = []
        for value in values:
            micro_batch = value if axis == "micro_batch" else MICRO_BATCH
            spec = BASE if axis == "micro_batch" else replace(BASE, **{axis: value})
            peaks.append(sum(simulate_step(spec, micro_batch, "none", accumulates=False).values()))
        found[axis] = {"values": values, "peak_bytes": peaks} | fit(values, peaks)
        print(axis, found[axis], flush=True)
    found["network"] = {
        name: {
            level: sum(simulate_step(replace(BASE, network=name), MICRO_BATCH, level, accumulates=False).values())
            for level in get_args(Level)
        }
        for name in ("yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x")
    }
    return found


def steps(rounds: int) -> dict[str, Any]:
    """Seconds and peak bytes of a real step along each axis, of either trainer."""
    found: dict[str, Any] = {}
    for axis, values in STEP_AXES.items():
        measured = [measure_step(**(STEP_BASE | {axis: value}), rounds=rounds) for value in values]
        found[axis] = {"values": values}
        for side in ("yolofit", "ultralytics"):
            seconds = [point[side]["seconds"] for point in measured]
            peaks = [point[side]["peak_bytes"] for point in measured]
            found[axis][side] = {"seconds": seconds, "peak_bytes": peaks}
            found[axis][side]["quartile_seconds"] = [point[side]["quartile_seconds"] for point in measured]
            if axis != "network":
                found[axis][side] |= {"seconds_fit": fit(values, seconds), "peak_bytes_fit": fit(values, peaks)}
        print(axis, found[axis], flush=True)
    return found


def measure_step(
    network: str, micro_batch: int, image_size: int, boxes_per_image: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Median seconds and peak bytes of one step."""
    torch.manual_seed(0)
    window = random_window(micro_batch, image_size, boxes_per_image=boxes_per_image)
    ours = training_step(build_network(network, NUM_CLASSES), micro_batch, micro_batch)
    theirs = UltralyticsLoop(build_network(network, NUM_CLASSES))
    functions = {"yolofit": lambda: ours.run(window), "ultralytics": lambda: theirs(window)}
    seconds = alternate(functions, rounds, warm_up=1, clock=time.process_time)
    held = {"yolofit": step_tensors(ours), "ultralytics": theirs.tensors()}
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "quartile_seconds": quartiles(seconds[name]),
            "peak_bytes": cpu_peak_bytes(function, [window.images, *held[name]]),
        }
        for name, function in functions.items()
    }


def fit(values: Sequence[float], results: Sequence[float]) -> dict[str, float]:
    """A straight line (``fixed`` + ``per_unit`` x value), and the exponent of the best power law."""
    per_unit, fixed = np.polyfit(values, results, 1)
    exponent = np.polyfit(np.log(values), np.log(results), 1)[0]
    return {"fixed": float(fixed), "per_unit": float(per_unit), "exponent": float(exponent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {"rounds": options.rounds, "base": STEP_BASE, "memory": memory(), "step": steps(options.rounds)}
    write(options.out, "growth of memory and time of an optimizer step", results, quiet=True)


if __name__ == "__main__":
    main()
