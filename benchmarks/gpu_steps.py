"""Memory and speed of an optimizer step on a GPU, at each recompute level, beside the step of Ultralytics' trainer.

    PYTHONPATH=. python benchmarks/gpu_steps.py --out benchmarks/results/gpu_steps_2026-11-26.json

YOLO11l, one micro-batch a step, fp16, random images. For every size and micro-batch the rivals take turns, twice; each
turn starts on an empty device. Ours is `engine.step`, with recordings and fused kernels; theirs is what `BaseTrainer`
does with a batch (see `step_time.py`), in channels_last under autocast, as its defaults are. Bytes are those after the
first steps: allocated and reserved by torch at the peak, and by the driver for the whole process. What the plan
predicts for them is another program's business: `plan_error.py`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import pynvml
import torch
from common import BOXES_PER_IMAGE, NUM_CLASSES, random_window, training_step, write
from step_time import UltralyticsLoop

from data.batch import Batch
from models.network import build_network
from models.recompute import norm_act

LEVELS = ("none", "elementwise", "block")
RIVALS = ("ultralytics", *LEVELS)
CELLS = ["16x640", "32x640", "16x800", "32x800", "8x640", "64x640"]
TURNS, WARM_UP_STEPS = 2, 5


def measure_turn(rival: str, precision: str, window: Batch, steps: int) -> dict[str, Any]:
    """Seconds of each step, and the bytes of the process."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = _their_step(window, precision) if rival == "ultralytics" else _our_step(window, precision, rival)
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = []
    torch.cuda.synchronize()
    for _ in range(steps):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "reserved_bytes": torch.cuda.memory_reserved(),
        "used_bytes": _used_bytes(),
    }


def _our_step(window: Batch, precision: str, level: str) -> Callable[[], object]:
    step = training_step(_network(), len(window), len(window), precision, level)
    return lambda: step.run(window)


def _their_step(window: Batch, precision: str) -> Callable[[], object]:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}[precision]
    loop = UltralyticsLoop(_network(), dtype)
    return lambda: loop(window)


def _network() -> torch.nn.Module:
    return copy.deepcopy(_template()).cuda()


@functools.cache
def _template() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("yolo11l", NUM_CLASSES)


def _used_bytes() -> int:
    """What the driver reports for the device, on which nothing else runs."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    return pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used


def measure_cell(
    image_size: int, micro_batch: int, precision: str, rivals: tuple[str, ...], steps: int
) -> list[dict[str, Any]]:
    """A row for each rival."""
    window = random_window(micro_batch, image_size).pin_memory()
    turns: dict[str, list[dict[str, Any]]] = {rival: [] for rival in rivals}
    for _ in range(TURNS):
        for rival in rivals:
            turns[rival].append(measure_turn(rival, precision, window, steps))
    return [_row(image_size, micro_batch, precision, rival, results) for rival, results in turns.items()]


def _row(
    image_size: int, micro_batch: int, precision: str, rival: str, turns: list[dict[str, Any]]
) -> dict[str, Any]:
    seconds = [second for turn in turns for second in turn["seconds"]]
    quartiles = statistics.quantiles(seconds, n=4)
    row = {
        "image_size": image_size,
        "micro_batch": micro_batch,
        "precision": precision,
        "rival": rival,
        "boxes_per_image": BOXES_PER_IMAGE,
        "median_seconds": quartiles[1],
        "quartile_seconds": [quartiles[0], quartiles[2]],
        "images_per_second": micro_batch / quartiles[1],
    }
    row |= {name: max(turn[name] for turn in turns) for name in turns[0] if name != "seconds"}
    gib = {name: f"{row[f'{name}_bytes'] / 2**30:.2f}" for name in ("peak_allocated", "reserved", "used")}
    print(image_size, micro_batch, precision, rival, f"{1000 * quartiles[1]:.1f} ms", gib, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", nargs="+", default=CELLS, help="Micro-batches and image sizes.")
    parser.add_argument("--steps", type=int, default=10, help="Steps of a turn that are timed.")
    arguments = parser.parse_args()
    pynvml.nvmlInit()
    norm_act.use_fused_kernels(True)
    torch.zeros(1, device="cuda")
    results: dict[str, Any] = {"used_bytes_of_an_empty_process": _used_bytes(), "rows": []}
    what = "YOLO11l: memory and time of an optimizer step of one micro-batch, beside Ultralytics' trainer"
    cells = [(*map(int, cell.split("x")), "fp16", RIVALS) for cell in arguments.cells]
    cells += [(16, 640, precision, ("ultralytics", "none", "elementwise")) for precision in ("bf16", "fp32")]
    for micro_batch, image_size, precision, rivals in cells:
        results["rows"] += measure_cell(image_size, micro_batch, precision, rivals, arguments.steps)
        write(arguments.out, what, results, quiet=True)  # after each cell: a run that is cut short leaves what it has


if __name__ == "__main__":
    main()
