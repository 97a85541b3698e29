"""A first configuration: suggested for a data set and a machine, and written with comments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from engine.machine.inventory import Machine
from engine.migration.translate import Translation, plain
from models.precision import BF16_CAPABILITY

IMAGE_SIZES = (640, 800, 960, 1280)
MIN_SIDE_PX = 8
"""Shorter side that most boxes must have in the network's input: it has one place for an object every 8 px."""
SMALL_BOX_QUANTILE = 0.1
BATCH_SIZES = (32, 16, 8, 4)
MIN_STEPS_PER_EPOCH = 8
COMMENTS = {
    "run.folder": "receives everything; -2, -3, ... is appended if it is taken",
    "run.patience": "epochs without a better mAP50-95 after which training stops",
    "data.root": "only read, never written to",
    "data.image_size": "side of the network's input in pixels; memory grows with its square",
    "data.batch_size": "images per optimizer step: the learning rate suits this number",
    "data.micro_batch_size": "images on the device at a time: the plan keeps to the budget",
    "model.network": "a detector of Ultralytics, such as yolov8n, yolo11l or yolo12s, or your own YAML file",
    "model.weights": "pretrained weights to start from",
    "model.precision": "bf16 and fp16 halve the activations, which are over 95 % of the memory",
    "model.recompute": "what backward computes again: planned with the micro-batch",
    "model.optimizer.lr": "after warm-up",
    "memory.budget": "most VRAM to use: auto (what is free), a size such as 14GiB, or a share such as 0.9",
    "trainer.accelerator": "gpu or cpu",
    "trainer.devices": "a number of devices, or a list such as [0, 1]",
    "trainer.max_epochs": "the learning rate falls over these epochs",
}
GROUP_ORDER = ("seed_everything", "run", "data", "model", "memory", "trainer")


@dataclass(frozen=True)
class DataFacts:
    """The facts of a data set that a configuration depends on."""

    num_images: int
    num_boxes: int
    num_classes: int
    small_side_rel: float
    """The shorter side of a box, as a share of the image's long side, that nine of ten boxes exceed."""
    long_side_px: int
    """The median long side of the images."""

    @property
    def image_size(self) -> int:
        """The smallest usual size at which small boxes can be told apart, but not above the size of the images."""
        sizes = [size for size in IMAGE_SIZES if size <= max(self.long_side_px, IMAGE_SIZES[0])]
        return next((size for size in sizes if size * self.small_side_rel >= MIN_SIDE_PX), sizes[-1])

    @property
    def batch_size(self) -> int:
        """The largest usual batch that leaves at least `MIN_STEPS_PER_EPOCH` steps in an epoch."""
        return next((size for size in BATCH_SIZES if self.num_images >= MIN_STEPS_PER_EPOCH * size), BATCH_SIZES[-1])

    def text(self, image_size_px: int) -> str:
        """Describe the data set at an image size in one line."""
        side_px = self.small_side_rel * image_size_px
        return (
            f"{self.num_images:,} training images, {self.num_boxes:,} boxes, {self.num_classes} classes; "
            f"a tenth of the boxes is under {side_px:.0f} px wide or high at {image_size_px} px"
        )


def examine_data(root: str | Path) -> DataFacts:
    """Read the facts of a data set from its labels and the sizes of its upright images.

    Raises:
        DataError: If the data set has errors.
    """
    dataset = read_dataset_yaml(root)
    index = build_index(dataset, "train")
    sides_hw = index.sizes_hw
    longest = sides_hw.max(axis=1, keepdims=True)
    shape = np.median(sides_hw / longest, axis=0)  # a box's height and width in parts of the long side
    sizes = (index.boxes_xyxy_rel[:, 2:] - index.boxes_xyxy_rel[:, :2])[:, ::-1] * shape
    return DataFacts(
        num_images=len(index),
        num_boxes=len(index.classes),
        num_classes=dataset.num_classes,
        small_side_rel=float(np.quantile(sizes.min(axis=1), SMALL_BOX_QUANTILE)) if len(sizes) else 1.0,
        long_side_px=int(np.median(longest)),
    )


def suggest(root: str | Path, facts: DataFacts | None, machine: Machine) -> dict[str, Any]:
    """Return settings by key for a data set on this machine."""
    on_gpu = bool(machine.gpus)
    precision = "bf16" if on_gpu and machine.gpus[0].capability >= BF16_CAPABILITY else "fp16"
    return {
        "run.folder": f"runs/{Path(root).absolute().parent.name}",
        "data.root": str(root),
        "data.image_size": facts.image_size if facts else IMAGE_SIZES[0],
        "data.batch_size": facts.batch_size if facts else BATCH_SIZES[0],
        "data.micro_batch_size": "auto",
        "model.network": "yolo11l" if on_gpu else "yolo11n",
        "model.precision": precision if on_gpu else "fp32",
        "model.recompute": "auto",
        "memory.budget": "auto",
        "trainer.accelerator": "gpu" if on_gpu else "cpu",
        "trainer.max_epochs": 100,
    }


def render(settings: Mapping[str, Any], facts: DataFacts | None, translation: Translation | None = None) -> str:
    """Write the YAML file: settings by section with their meaning or origin, and what was left out."""
    translated = translation.lines if translation else []
    with_remarks = (line for line in translated if line.settings and line.remark)
    comments = COMMENTS | {next(iter(line.settings)): line.comment() for line in with_remarks}
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    lines = [f"# {facts.text(settings['data.image_size'])}."] if facts else []
    lines += ["# Differences from the defaults; --help explains every key, --print_config shows all values."]
    lines += [f"# {line.comment()}" for line in translated if not line.settings]
    for group in sorted(tree, key=lambda name: GROUP_ORDER.index(name) if name in GROUP_ORDER else len(GROUP_ORDER)):
        lines += [*([""] if isinstance(tree[group], dict) else []), *_render(group, tree[group], group, comments)]
    return "\n".join(lines) + "\n"


def _render(name: str, value: Any, key: str, comments: Mapping[str, str]) -> list[str]:
    indent = "  " * key.count(".")
    if isinstance(value, dict):
        inner = [line for child, below in value.items() for line in _render(child, below, f"{key}.{child}", comments)]
        return [f"{indent}{name}:", *inner]
    line = f"{indent}{name}: {plain(value)}"
    return [f"{line}  # {comments[key]}" if key in comments else line]
