"""What the report says about a run, as plain values and rows of text: no pictures, no HTML."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine.machine.diagnosis import PLATFORM_NAMES
from engine.machine.inventory import examine_machine
from engine.memory.units import format_bytes
from engine.report.memory_log import (
    OOM_RECOVERY,
    OUT_OF_MEMORY,
    PEAK,
    RESERVED,
    SPEED,
    SPILL,
    TOTAL,
    USED,
    Columns,
    has_event,
    is_gpu,
    largest_bytes,
    read_memory_log,
)
from engine.report.results_plots import EPOCH, History, best_epoch, read_history
from engine.validation.metrics import DetectionResults

PACKAGES = ("yolofit", "torch", "torchvision", "lightning", "ultralytics", "albumentations", "numpy")
FEW_BOXES = 50
"""Training boxes of a class below which its results are mostly chance."""
IMBALANCE = 20
"""Ratio of the largest to the smallest class from which on it is worth a remark."""
OVERFIT_SHARE = 0.5
"""A best epoch in this first part of a run of some length means that more epochs did harm."""
MIN_EPOCHS = 10
PLAN_ERROR = 0.1
PLAN_KEYS = {
    "device": "device",
    "micro_batch": "planned micro-batch",
    "accumulate": "planned accumulation",
    "image_size": "planned image size",
    "precision": "planned precision",
    "recompute": "planned recompute level",
}


@dataclass
class RunFacts:
    """What is known of a run besides the files in its folder."""

    folder: Path
    heading: str
    """Network, classes and data in one line."""
    num_epochs: int
    """That were finished."""
    max_epochs: int
    results: DetectionResults | None = None
    """Of the epoch that the pictures show; None if nothing was validated."""
    about_results: str = ""
    """Which epoch that is."""
    num_train_boxes_C: NDArray | None = None
    confidence: float = math.nan
    """From which on detections are drawn."""
    num_wrong_images: int = 0
    messages: list[str] = field(default_factory=list)
    """Warnings of the run."""


def run_warnings(facts: RunFacts) -> list[str]:
    """What went wrong in a run, and what its results must be read with; each once, with what to do about it."""
    warnings = [*facts.messages]
    history_path, memory_path = facts.folder / "metrics.csv", facts.folder / "memory.csv"
    if history_path.is_file():
        warnings += _training_warnings(read_history(history_path), facts)
    if facts.num_train_boxes_C is not None and facts.results is not None:
        warnings += _class_warnings(facts.num_train_boxes_C, facts.results)
    if memory_path.is_file():
        warnings += _memory_warnings(read_memory_log(memory_path), _plan(facts.folder))
    return list(dict.fromkeys(warnings))


def _training_warnings(history: History, facts: RunFacts) -> Iterator[str]:
    skipped = int(np.nansum(history.get("train/skipped_windows", [0])))
    if skipped:
        remedy = "a few are usual in fp16; else lower model.optimizer.lr"
        yield f"{skipped} optimizer steps were skipped for an inf or NaN gradient: {remedy}"
    best = best_epoch(history)
    last = int(history[EPOCH][-1]) + 1 if len(history.get(EPOCH, [])) else 0
    if best is None or last < MIN_EPOCHS:
        return
    if best == last == facts.max_epochs:
        yield "the last epoch is the best one: more epochs (trainer.max_epochs) may give more"
    elif best <= OVERFIT_SHARE * last:
        remedy = "more training images or more augmentation would help"
        yield f"the best epoch is {best} of {last}: later ones were no better: {remedy}"


def _class_warnings(num_train_C: NDArray, results: DetectionResults) -> Iterator[str]:
    names = results.class_names
    few = [f"{name} ({count})" for name, count in zip(names, num_train_C, strict=True) if 0 < count < FEW_BOXES]
    none = [name for name, count in zip(names, num_train_C, strict=True) if count == 0]
    unseen = [name for name, count in zip(names, results.num_truth_C, strict=True) if count == 0]
    if none:
        yield f"no training box at all: {_listed(none)}: label some, or take the class out of data.yaml"
    if few:
        yield f"fewer than {FEW_BOXES} training boxes: {_listed(few)}: their results are mostly chance"
    present = num_train_C[num_train_C > 0]
    if present.size and present.max() / present.min() >= IMBALANCE:
        ratio = present.max() / present.min()
        yield f"the most frequent class has {ratio:.0f} times as many training boxes as the rarest: compare AP by class"
    if unseen:
        yield f"no box in validation: {_listed(unseen)}: nothing is known about them; the means leave them out"


def _memory_warnings(columns: Columns, plan: dict) -> Iterator[str]:
    spills, recoveries, failures = (sum(has_event(columns, event)) for event in (SPILL, OOM_RECOVERY, OUT_OF_MEMORY))
    if spills:
        yield f"VRAM spilled into system RAM ({spills} times noted): lower memory.budget or data.micro_batch_size"
    if recoveries:
        yield f"{recoveries} times memory ran out, and the step was finished in smaller pieces: lower memory.budget"
    if failures:
        yield "the run ended for lack of memory: use data.micro_batch_size auto and model.recompute auto"
    measured, planned = largest_bytes(columns[RESERVED]), plan.get("peak_bytes")
    if is_gpu(columns) and measured and planned and measured > (1 + PLAN_ERROR) * planned:
        yield f"more memory than planned was reserved: {format_bytes(measured)}, planned {format_bytes(planned)}"


def plan_rows(folder: Path) -> list[tuple[str, str]]:
    """The plan, from ``plan.json``; nothing if the run had none."""
    plan = _plan(folder)
    rows = [(label, str(plan[key])) for key, label in PLAN_KEYS.items() if key in plan]
    for key, label in (("budget_bytes", "budget"), ("peak_bytes", "planned peak")):
        if plan.get(key):
            rows.append((label, format_bytes(int(plan[key]))))
    components = {name: num_bytes for name, num_bytes in plan.get("components", {}).items() if num_bytes > 0}
    parts = sorted(components.items(), key=lambda item: -item[1])
    if parts:
        rows.append(("planned peak, by part", ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)))
    return rows


def memory_rows(folder: Path) -> list[tuple[str, str]]:
    """What was measured, from ``memory.csv``, beside the plan; nothing if the run has none."""
    path = folder / "memory.csv"
    if not path.is_file():
        return []
    columns = read_memory_log(path)
    used = largest_bytes(columns[USED])
    speeds = [speed for speed in columns[SPEED] if not math.isnan(speed)]
    pace = [("images/s, median", f"{np.median(speeds):.1f}")] if speeds else []
    if not is_gpu(columns):
        return [("measured: RAM of the process, at most", format_bytes(used or 0)), *pace]
    sizes = {"allocated": PEAK, "reserved": RESERVED, "used on the device, all programs": USED, "of": TOTAL}
    rows = [
        (f"measured: {label}", format_bytes(size))
        for label, name in sizes.items()
        if (size := largest_bytes(columns[name])) is not None
    ]
    planned, reserved = _plan(folder).get("peak_bytes"), largest_bytes(columns[RESERVED])
    context = _plan(folder).get("components", {}).get("cuda_context", 0)
    if planned and reserved:
        error = planned / (reserved + context) - 1
        rows.append(("planned against reserved and CUDA", f"{error:+.1%}"))
    return rows + pace


def environment_rows() -> list[tuple[str, str]]:
    """This machine and the versions of what runs on it."""
    machine = examine_machine([])  # what it asks of a GPU would open a CUDA context there, beside another process
    known = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{gpu.name} ({format_bytes(gpu.total_memory)})" for gpu in known)
    rows = [
        ("GPU", gpus or "none"),
        ("driver", machine.driver or "none"),
        ("CUDA of torch", machine.torch_cuda or "none"),
        ("system", PLATFORM_NAMES[machine.platform]),
        ("cores", str(machine.cores)),
        ("RAM free now", format_bytes(machine.ram_available_bytes)),
        ("Python", platform.python_version()),
    ]
    return rows + [(package, _version(package)) for package in PACKAGES]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _plan(folder: Path) -> dict:
    path = folder / "plan.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
