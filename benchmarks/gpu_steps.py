"""Memory and speed of an optimizer step on a GPU, at each recompute level, beside the step of Ultralytics' trainer.

    PYTHONPATH=. python benchmarks/gpu_steps.py --out benchmarks/results/gpu_steps_2026-11-26.json

YOLO11l, one micro-batch a step, fp16, random images. For every size and micro-batch the rivals take turns, twice; each
turn starts on an empty device. Ours is `engine.training.step`, with captured graphs and fused kernels; theirs is what
`BaseTrainer` does with a batch (see `step_time.py`), in channels_last under autocast, as its defaults are. Bytes are
those after the first steps: allocated and reserved by torch at the peak, and by the driver for the whole process. What
the plan predicts for them is another program's business: `plan_error.py`.

With `--compiled` there are cells for `torch.compile` instead, one to two minutes each: Ultralytics' `compile=True`
(TorchInductor in its default mode) beside the same step without it, with the seconds of the first steps, which compile.
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

from data.loading.batch import Batch
from engine.training.out_of_memory import RecoveryHooks
from engine.training.precision import Precision
from models.network import NetworkName, build_network

LEVELS = ("none", "elementwise", "block")
RIVALS = ("ultralytics", *LEVELS)
COMPILED = " compiled"
"""Ends the name of a rival whose network is compiled."""
COMPILED_RIVALS = ("ultralytics", "ultralytics compiled", "elementwise")
CELLS = ["16x640", "32x640", "16x800", "32x800", "8x640", "64x640"]
COMPILED_CELLS = ["16x640", "64x640"]
TURNS, WARM_UP_STEPS = 2, 5
NETWORK: NetworkName = "yolo11l"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""A CPU only shows that the program works."""


def measure_turn(rival: str, precision: Precision, window: Batch, steps: int) -> dict[str, Any]:
    """Seconds of the first steps and of each later one, and the bytes of the process."""
    empty_device()
    step = make_step(rival, precision, window)
    start = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        step()
    synchronize()
    first_seconds, seconds = time.perf_counter() - start, []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "first_steps_seconds": first_seconds,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "reserved_bytes": torch.cuda.memory_reserved(),
        "used_bytes": used_bytes(),
    }


def make_step(
    rival: str, precision: Precision, window: Batch, on_recovery: Callable[[str], object] = lambda sentence: None
) -> Callable[[], object]:
    """A function that takes a step of one of the rivals: ``ultralytics`` or a recompute level, perhaps compiled.

    ``on_recovery`` is told if a step of ours ran out of memory and continues with less.
    """
    name, compiled = rival.removesuffix(COMPILED), rival.endswith(COMPILED)
    if compiled:
        torch.compiler.reset()  # a run of its own would know nothing of other sizes
    if name == "ultralytics":
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}[precision]
        loop = UltralyticsLoop(fresh_network(), dtype, compiled)
        return lambda: loop(window)
    hooks = RecoveryHooks(on_recovery)
    step = training_step(fresh_network(), len(window), len(window), precision, name, hooks)
    return lambda: step.run(window)


def empty_device() -> None:
    """Give everything back; the peak is counted anew."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def fresh_network() -> torch.nn.Module:
    """A copy of the same random network, on the device."""
    return copy.deepcopy(_template(NETWORK)).to(DEVICE)


@functools.cache
def _template(name: NetworkName) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, NUM_CLASSES)


def used_bytes() -> int:
    """What the driver reports for the device, on which nothing else runs; 0 without a GPU."""
    if DEVICE == "cpu":
        return 0
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    return pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used


def measure_cell(
    image_size: int, micro_batch: int, precision: Precision, rivals: tuple[str, ...], steps: int
) -> list[dict[str, Any]]:
    """A row for each rival."""
    window = random_window(micro_batch, image_size)
    if DEVICE == "cuda":
        window = window.pin_memory()
    turns: dict[str, list[dict[str, Any]]] = {rival: [] for rival in rivals}
    num_turns = 1 if any(rival.endswith(COMPILED) for rival in rivals) else TURNS  # to compile takes a minute or two
    for _ in range(num_turns):
        for rival in rivals:
            turns[rival].append(measure_turn(rival, precision, window, steps))
    return [_row(image_size, micro_batch, precision, rival, results) for rival, results in turns.items()]


def _row(
    image_size: int, micro_batch: int, precision: Precision, rival: str, turns: list[dict[str, Any]]
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
    parser.add_argument("--cells", nargs="+", help="Micro-batches and image sizes.")
    parser.add_argument("--steps", type=int, default=10, help="Steps of a turn that are timed.")
    parser.add_argument("--compiled", action="store_true", help="Measure compiled networks.")
    arguments = parser.parse_args()
    if DEVICE == "cuda":
        pynvml.nvmlInit()
        torch.zeros(1, device=DEVICE)
    results: dict[str, Any] = {"used_bytes_of_an_empty_process": used_bytes(), "rows": []}
    what = "YOLO11l: memory and time of an optimizer step of one micro-batch, beside Ultralytics' trainer"
    names, rivals = (COMPILED_CELLS, COMPILED_RIVALS) if arguments.compiled else (CELLS, RIVALS)
    cells: list[tuple[int, int, Precision, tuple[str, ...]]] = []
    for cell in arguments.cells or names:
        micro_batch, image_size = map(int, cell.split("x"))
        cells.append((micro_batch, image_size, "fp16", rivals))
    if not arguments.compiled:
        cells += [(16, 640, "bf16", RIVALS[:3]), (16, 640, "fp32", RIVALS[:3])]
    for micro_batch, image_size, precision, rivals in cells:
        results["rows"] += measure_cell(image_size, micro_batch, precision, rivals, arguments.steps)
        write(arguments.out, what, results, quiet=True)  # after each cell: a run that is cut short leaves what it has


if __name__ == "__main__":
    main()
