"""The largest micro-batch that trains on cards of 8, 12, 16 and 24 GiB: Ultralytics' step and ours at each level.

    PYTHONPATH=. python benchmarks/gpu_caps.py --out benchmarks/results/gpu_caps_2026-11-26.json

YOLO11l in fp16, as in `gpu_steps.py`. A card's size is a cap on torch's allocator: the size less what CUDA itself holds
in that process, as the driver says. Every answer is tried out: three steps with that micro-batch succeed, three steps
with one image more run out of memory. (Three, since ours are captured in the second.) Beside it stands the plan's
answer, made without running anything: with its margin, as `engine.fit` would choose, and without.

Each rival at each size is searched in a process of its own, several at a time; the result file grows with each. On a
machine without a GPU, `--dry` runs the program with yolo11n and a pretended card.
"""

from __future__ import annotations

import argparse
import itertools
import math
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_steps
import torch
from common import BOXES_PER_IMAGE, NUM_CLASSES, random_window, write
from gpu_steps import DEVICE, RIVALS, empty_device, make_step, synchronize

from data.loading.batch import Batch
from engine.errors import TrainingError
from engine.memory.overhead import of_this_machine
from engine.memory.probe import context_bytes
from engine.memory.units import GIB
from engine.planning.choose import margin_of
from engine.planning.predict import predict
from engine.planning.simulation import StepSpec
from engine.training.config import ModelConfig
from engine.training.out_of_memory import is_out_of_memory
from models.recompute.levels import Level

CARDS_GIB = (8, 12, 16, 24)
IMAGE_SIZES = (640, 800)
STEPS = 3
LARGEST = 256
"""Micro-batches are searched up to this one."""
WARM_UP_IMAGES = 2


def largest(fits: Callable[[int], bool], guess: int, most: int = LARGEST) -> int:
    """The largest number up to ``most`` that fits, if all smaller ones do; 0 if none does.

    Goes from the guess in growing strides until one fits and one does not, then halves what lies between.
    """
    low, high, stride, number = 0, most + 1, 1, min(max(guess, 1), most)
    while high - low > 1:
        if fits(number):
            low = number
        else:
            high = number
        if low > 0 and high <= most:
            number = (low + high) // 2
        else:
            number = min(low + stride, most) if low else max(high - stride, 1)
        stride *= 2
    return low


def planned_bytes(spec: StepSpec, level: Level, micro_batch: int) -> int:
    """What the plan says that a process holds on this machine's GPU, or on a usual one."""
    return sum(predict(spec, LARGEST, level, micro_batch, accumulates=False).values())


def planned(spec: StepSpec, level: Level, limit_bytes: int) -> int:
    """The largest micro-batch that the plan sees within a limit."""
    return largest(lambda micro_batch: planned_bytes(spec, level, micro_batch) <= limit_bytes, LARGEST // 4)


def level_like(rival: str) -> Level:
    """The level that is planned for a rival: Ultralytics keeps what `none` keeps."""
    return "none" if rival == "ultralytics" else rival


def spec_of(image_size: int) -> StepSpec:
    """What is planned."""
    network = "yolo11l" if DEVICE == "cuda" else "yolo11n"
    return StepSpec(ModelConfig(network, precision="fp16"), NUM_CLASSES, image_size, BOXES_PER_IMAGE)


class Trials:
    """Attempts to train with a rival at an image size, in this process."""

    def __init__(self, rival: str, image_size: int, most: int) -> None:
        """Load all kernels and libraries, so that what CUDA holds grows no more; ``most``: images at a time."""
        self.rival, self.window = rival, random_window(most, image_size)
        if DEVICE == "cuda":
            self.window = self.window.pin_memory()
        self.run(min(WARM_UP_IMAGES, most))

    @property
    def context_bytes(self) -> int:
        """What this process holds beside torch's allocator."""
        return context_bytes(torch.device(DEVICE, 0))

    def run(self, micro_batch: int, card_bytes: int | None = None) -> dict[str, Any]:
        """Take a few steps on an empty device, or on a card of a size; whether they succeeded, and their memory."""
        assert micro_batch <= len(self.window), f"{micro_batch} of {len(self.window)} images"
        empty_device()
        limit_bytes = math.inf if card_bytes is None else card_bytes - self.context_bytes
        if DEVICE == "cuda":
            total_bytes = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total_bytes, 1.0))
        error = _take_steps(self.rival, self.window.split(micro_batch)[0])
        found = {
            "micro_batch": micro_batch,
            "fits": error is None and torch.cuda.max_memory_reserved() <= limit_bytes,
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
        found["process_bytes"] = found["peak_reserved_bytes"] + self.context_bytes
        return found if error is None else found | {"error": error}


def _take_steps(rival: str, window: Batch) -> str | None:
    """Some steps; None, or how memory ran out. Ours must not help itself by lowering its settings."""

    def refuse(sentence: str) -> None:
        raise torch.OutOfMemoryError(f"out of memory: {sentence}")

    try:
        step = make_step(rival, "fp16" if DEVICE == "cuda" else "fp32", window, on_recovery=refuse)
        for _ in range(STEPS):
            step()
        synchronize()
    except (RuntimeError, TrainingError) as error:
        if not is_out_of_memory(error) and not isinstance(error, TrainingError):
            return f"another error: {type(error).__name__}: {error}"[:500]
        return f"{error}"[:200]
    return None


def search(rival: str, image_size: int, cards_gib: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row for each card."""
    machine = of_this_machine()  # before kernels are loaded, as `engine.fit` does
    with mock.patch("engine.planning.predict.of_this_machine", lambda: machine):
        spec, level = spec_of(image_size), level_like(rival)
        most = min(planned(spec, level, max(cards_gib) * GIB) * 5 // 4 + 8, LARGEST)
        trials = Trials(rival, image_size, most)
        return [search_card(trials, spec, level, card_gib) for card_gib in cards_gib]


def search_card(trials: Trials, spec: StepSpec, level: Level, card_gib: int) -> dict[str, Any]:
    """What fits on a card, what the plan said, and every trial."""
    card_bytes, tried = card_gib * GIB, list[dict[str, Any]]()

    def fits(micro_batch: int) -> bool:
        tried.append(trials.run(micro_batch, card_bytes))
        return tried[-1]["fits"]

    without_margin = planned(spec, level, card_bytes)
    found = largest(fits, without_margin, len(trials.window))
    row: dict[str, Any] = {"rival": trials.rival, "image_size": spec.image_size, "card_gib": card_gib}
    row |= {"micro_batch": found, "planned_micro_batch": planned(spec, level, card_bytes - margin_of(card_bytes))}
    row |= {"planned_without_margin": without_margin, "context_bytes": trials.context_bytes}
    if found:
        row |= {"process_bytes": next(trial["process_bytes"] for trial in tried if trial["micro_batch"] == found)}
        row |= {"planned_bytes": planned_bytes(spec, level, found)}
    return row | {"tried": tried}


def dry_run(rival: str, image_size: int, cards_gib: tuple[int, ...]) -> list[dict[str, Any]]:
    """The same on a CPU: every step is taken, but of so few images that it is quick, and what fits is made up."""
    run = Trials.run

    def pretended(self: Trials, micro_batch: int, card_bytes: int | None = None) -> dict[str, Any]:
        found = run(self, 1)
        pretended_bytes = planned_bytes(spec_of(image_size), level_like(rival), micro_batch) * 1.1
        return found | {"micro_batch": micro_batch, "fits": card_bytes is None or pretended_bytes <= card_bytes}

    Trials.run = pretended  # in a process of its own
    gpu_steps.NETWORK = "yolo11n"
    return search(rival, image_size, cards_gib)


def num_side_by_side(largest_card_gib: int) -> int:
    """How many such cards this device has room for."""
    if DEVICE == "cpu":
        return 1
    return max(int(torch.cuda.get_device_properties(0).total_memory / GIB) // (largest_card_gib + 1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cards-gib", type=int, nargs="+", default=CARDS_GIB)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=IMAGE_SIZES)
    parser.add_argument("--dry", action="store_true", help="Without a GPU: only to see that the program works.")
    options = parser.parse_args()
    what = "YOLO11l, fp16: the largest micro-batch that trains on a card of some size, tried out under a cap"
    results: dict[str, Any] = {"steps": STEPS, "rows": [], "failed": {}}
    jobs, cards = num_side_by_side(max(options.cards_gib)), tuple(options.cards_gib)
    function = dry_run if options.dry else search
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        cells = list(itertools.product(options.image_sizes, RIVALS))
        futures = {pool.submit(function, rival, size, cards): (rival, size) for size, rival in cells}
        for future in as_completed(futures):
            if error := future.exception():
                name = "{} at {}".format(*futures[future])
                results["failed"][name] = "".join(traceback.format_exception(error))[-2000:]
                print(name, results["failed"][name], flush=True)
            else:
                results["rows"] += future.result()
                for row in results["rows"][-len(cards) :]:
                    print({key: value for key, value in row.items() if key != "tried"}, flush=True)
            results["rows"].sort(key=lambda row: cells.index((row["image_size"], row["rival"])))
            write(options.out, what, results, quiet=True)


if __name__ == "__main__":
    main()
