"""What the report says about a run, as plain values and rows of text, without pictures and HTML."""

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

from engine.errors import some_of
from engine.machine.diagnosis import PLATFORM_NAMES
from engine.machine.inventory import examine_machine
from engine.memory.units import format_bytes
from engine.report import memory_log
from engine.report.memory_log import Columns, has_event, is_gpu, largest_bytes, read_memory_log
from engine.report.results_plots import EPOCH, History, best_epoch, read_history
from engine.validation.metrics import DetectionResults

PACKAGES = ("yolofit", "torch", "torchvision", "lightning", "ultralytics", "albumentations", "numpy")
FEW_BOXES = 50
"""With fewer training boxes, the results of a class are mostly chance."""
IMBALANCE = 20
"""A ratio of the largest to the smallest class from which the report remarks on it."""
OVERFIT_SHARE = 0.5
"""If the best epoch is in this first share of a run, later epochs did not help."""
MIN_EPOCHS = 10
"""The report does not judge the best epoch of a shorter run."""
PLAN_ERROR = 0.1
PLAN_KEYS = {
    "device": "device",
    "micro_batch": "planned micro-batch",
    "accumulate": "planned accumulation",
    "image_size": "planned image size",
    "precision": "planned precision",
    "recompute": "planned recompute level",
}
MEASURED = {
    "allocated": memory_log.PEAK,
    "reserved": memory_log.RESERVED,
    "used on the device by all programs": memory_log.USED,
    "size of the device": memory_log.TOTAL,
}


@dataclass
class RunFacts:
    """Facts about a run that are not in the files of its folder."""

    folder: Path
    heading: str
    """Network, classes and data in one line."""
    num_epochs: int
    """Finished epochs."""
    max_epochs: int
    results: DetectionResults | None = None
    """Results of the epoch that the pictures show; None if nothing was validated."""
    about_results: str = ""
    """A sentence that says which epoch that is."""
    num_train_boxes_C: NDArray | None = None
    confidence: float = math.nan
    """Detections above this confidence are drawn."""
    num_wrong_images: int = 0
    messages: list[str] = field(default_factory=list)
    """Warnings that were given during the run."""


def run_warnings(facts: RunFacts) -> list[str]:
    """What went wrong in a run and what to consider when reading its results, each once."""
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
        yield (
            f"{skipped} optimizer steps were skipped because a gradient was inf or NaN. A few are normal in fp16. "
            "If there are many, lower model.optimizer.lr."
        )
    best = best_epoch(history)
    last = int(history[EPOCH][-1]) + 1 if len(history.get(EPOCH, [])) else 0
    if best is None or last < MIN_EPOCHS:
        return
    if best == last == facts.max_epochs:
        yield "the last epoch is the best one. More epochs (trainer.max_epochs) may improve the result."
    elif best <= OVERFIT_SHARE * last:
        yield f"the best epoch is {best} of {last}. Use more training images or more augmentation."


def _class_warnings(num_train_C: NDArray, results: DetectionResults) -> Iterator[str]:
    names = results.class_names
    few = [f"{name} ({count})" for name, count in zip(names, num_train_C, strict=True) if 0 < count < FEW_BOXES]
    none = [name for name, count in zip(names, num_train_C, strict=True) if count == 0]
    unseen = [name for name, count in zip(names, results.num_truth_C, strict=True) if count == 0]
    if none:
        yield f"no training box at all: {some_of(none)}. Label some, or remove the class from data.yaml."
    if few:
        yield f"fewer than {FEW_BOXES} training boxes: {some_of(few)}. The results of these classes are mostly chance."
    present = num_train_C[num_train_C > 0]
    if present.size and present.max() / present.min() >= IMBALANCE:
        ratio = present.max() / present.min()
        yield (
            f"the most frequent class has {ratio:.0f} times as many training boxes as the rarest. "
            "Compare the AP of single classes."
        )
    if unseen:
        yield f"no box in validation: {some_of(unseen)}. These classes are not measured, and no mean includes them."


def _memory_warnings(columns: Columns, plan: dict) -> Iterator[str]:
    events = (memory_log.SPILL, memory_log.OOM_RECOVERY, memory_log.OUT_OF_MEMORY)
    spills, recoveries, failures = (sum(has_event(columns, event)) for event in events)
    if spills:
        yield f"VRAM spilled into system RAM ({spills} times). Lower memory.budget or data.micro_batch_size."
    if recoveries:
        yield f"memory ran out {recoveries} times, and each step was completed in smaller parts. Lower memory.budget."
    if failures:
        yield "the run ended because memory ran out. Set data.micro_batch_size and model.recompute to auto."
    measured, planned = largest_bytes(columns[memory_log.RESERVED]), plan.get("peak_bytes")
    if is_gpu(columns) and measured and planned and measured > (1 + PLAN_ERROR) * planned:
        yield f"training reserved {format_bytes(measured)}, more than the planned {format_bytes(planned)}."


def plan_rows(folder: Path) -> list[tuple[str, str]]:
    """The plan from ``plan.json``; no rows if the run had none."""
    plan = _plan(folder)
    rows = [(label, str(plan[key])) for key, label in PLAN_KEYS.items() if key in plan]
    for key, label in (("budget_bytes", "budget"), ("peak_bytes", "planned peak")):
        if plan.get(key):
            rows.append((label, format_bytes(int(plan[key]))))
    parts = sorted(plan.get("components", {}).items(), key=lambda item: -item[1])
    if shown := [f"{name} {format_bytes(num_bytes)}" for name, num_bytes in parts if num_bytes > 0]:
        rows.append(("planned peak, by part", ", ".join(shown)))
    return rows


def memory_rows(folder: Path) -> list[tuple[str, str]]:
    """Measurements from ``memory.csv``, compared with the plan; no rows if the run has no such file."""
    path = folder / "memory.csv"
    if not path.is_file():
        return []
    columns = read_memory_log(path)
    speeds = [speed for speed in columns[memory_log.SPEED] if not math.isnan(speed)]
    pace = [("images/s, median", f"{np.median(speeds):.1f}")] if speeds else []
    if not is_gpu(columns):
        used = largest_bytes(columns[memory_log.USED]) or 0
        return [("measured: RAM of the process, at most", format_bytes(used)), *pace]
    sizes = {label: largest_bytes(columns[name]) for label, name in MEASURED.items()}
    rows = [(f"measured: {label}", format_bytes(size)) for label, size in sizes.items() if size is not None]
    plan, reserved = _plan(folder), sizes["reserved"]
    if plan.get("peak_bytes") and reserved:
        context = plan.get("components", {}).get("cuda_context", 0)
        error = plan["peak_bytes"] / (reserved + context) - 1
        rows.append(("planned peak against reserved plus CUDA", f"{error:+.1%}"))
    return rows + pace


def environment_rows() -> list[tuple[str, str]]:
    """This machine and the versions of the packages."""
    machine = examine_machine([])  # examining a GPU would open a CUDA context on it
    known = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{gpu.name} ({format_bytes(gpu.total_memory)})" for gpu in known)
    rows = [
        ("GPU", gpus or "none"),
        ("driver", machine.driver or "none"),
        ("CUDA of torch", machine.torch_cuda or "none"),
        ("system", PLATFORM_NAMES[machine.platform]),
        ("cores", str(machine.cores)),
        ("RAM free at the end", format_bytes(machine.ram_available_bytes)),
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
