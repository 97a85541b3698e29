"""Before a run: settles its VRAM budget, and answers each ``auto`` by a plan.

On a GPU there is a plan for every run, so that it is known beforehand whether it fits, and afterwards whether that was
right. On a CPU, where memory is plenty and slow, only ``auto`` asks for one; the budget is then of RAM.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from data.augmentation.mosaic import NUM_TILES
from data.boards.drawing import CLASS_NAMES
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import index_of, scan_split
from data.loading.sampler import STRIDE_PX, image_sizes
from engine.errors import ConfigError
from engine.machine.devices import count_devices, device_of
from engine.memory.allocator import cap_allocator, enable_expandable_segments, resolve_budget
from engine.memory.config import MemoryConfig
from engine.memory.units import format_bytes
from engine.planning.choose import Recommendation
from engine.planning.data_section import SYNTHETIC, check_sizes, index_folder
from engine.planning.predict import described, recommend
from engine.planning.simulation import StepSpec, network_on_meta
from engine.training.config import ModelConfig
from models.architecture import Architecture

log = logging.getLogger(__name__)
AUTO = "auto"
UNPLANNED_MICRO_BATCH = 16
"""Images at a time for a command that does not train; validation takes fewer if they do not fit."""


@dataclass(frozen=True)
class MemoryAhead:
    """What is known of a run's memory before it starts."""

    budget_bytes: int
    batch_size: int
    """Images of an optimizer step on one device."""
    spec: StepSpec
    plan: Recommendation

    def __str__(self) -> str:
        """The plan, for the start of a run."""
        plan = self.plan
        layers = f", block in layers {', '.join(map(str, plan.recompute_layers))}" if plan.recompute_layers else ""
        split = f"{plan.accumulate} x {plan.micro_batch}" if plan.accumulate > 1 else "one micro-batch"
        return (
            f"plan: {self.batch_size} images a step as {split} at {plan.image_size} px, {plan.precision}, "
            f"recompute {plan.recompute}{layers}: predicted peak {format_bytes(plan.peak_bytes)} "
            f"of a budget of {format_bytes(self.budget_bytes)}"
        )

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` into the run folder."""
        values = {"budget_bytes": self.budget_bytes, **asdict(self.plan)}
        (folder / "plan.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def what_fits(self) -> str:
        """What would fit instead, for the error that ends a run."""
        return what_fits(self.spec, self.budget_bytes)


def settle_memory(
    config: Namespace, architecture: Architecture | None = None, stride_px: int = STRIDE_PX
) -> tuple[Namespace, MemoryAhead | None]:
    """Resolve the budget, keep the allocator to it, and plan.

    Args:
        config: A parsed configuration.
        architecture: Of its network, if that is not the one of ``model.network``.
        stride_px: The network's largest.

    Returns:
        The parsed configuration with the plan's value for each ``auto``, and the plan; None on a CPU without ``auto``.

    Raises:
        ConfigError: If nothing fits the budget, or the budget cannot be had.
    """
    data, model = config.data, config.model
    check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale, stride_px)
    memory = MemoryConfig(**vars(config.memory))
    device = device_of(config.trainer)
    if device.type == "cuda":
        if memory.expandable_segments:
            enable_expandable_segments()
        torch.cuda.set_device(device)  # whoever names no device would open a context on the first one
    is_fixed = AUTO not in (data.micro_batch_size, model.recompute)
    if model.recompute_layers and not is_fixed:
        auto_key = "model.recompute" if model.recompute == AUTO else "data.micro_batch_size"
        raise ConfigError(
            f"model.recompute_layers: {model.recompute_layers}: {auto_key} auto plans without levels of single layers: "
            f"leave them out, or set {auto_key} to a value"
        )
    if is_fixed and device.type == "cpu":
        return config, None
    budget_bytes = resolve_budget(memory, device)
    cap_allocator(device, budget_bytes)
    spec, _ = spec_of(config, architecture, stride_px)
    if device.type == "cpu":
        spec = replace(spec, model=replace(spec.model, fused_kernels=False))
    batch_size = -(-data.batch_size // count_devices(config.trainer))
    if is_fixed:
        micro_batch_size = min(data.micro_batch_size, batch_size)
        plan = described(spec, batch_size, micro_batch_size, model.recompute, model.recompute_layers or {})
        _warn_if_too_much(plan, budget_bytes)
        return config, MemoryAhead(budget_bytes, batch_size, spec, plan)
    micro_batch_size = None if data.micro_batch_size == AUTO else data.micro_batch_size
    recompute = None if model.recompute == AUTO else model.recompute
    plan = recommend(spec, budget_bytes, batch_size, micro_batch_size, recompute)
    settled: dict[str, object] = {"data.micro_batch_size": plan.micro_batch, "model.recompute": plan.recompute}
    if recompute is None:
        settled["model.recompute_layers"] = plan.layer_levels
    return changed(config, settled), MemoryAhead(budget_bytes, batch_size, spec, plan)


def settled_without_plan(config: Namespace, stride_px: int = STRIDE_PX) -> Namespace:
    """A parsed configuration with a value for each ``auto``, for a command that does not train.

    Args:
        config: As for `settle_memory`.
        stride_px: As there.

    Raises:
        ConfigError: If sizes are wrong.
    """
    data = config.data
    check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale, stride_px)
    settled: dict[str, object] = {}
    if config.data.micro_batch_size == AUTO:
        settled["data.micro_batch_size"] = min(UNPLANNED_MICRO_BATCH, max(config.data.batch_size, 1))
    if config.model.recompute == AUTO:
        settled["model.recompute"] = "none"
    return changed(config, settled)


def changed(config: Namespace, values: Mapping[str, object]) -> Namespace:
    """A copy of a parsed configuration in which some keys have other values."""
    copy = config.clone()
    for key, value in values.items():
        copy[key] = value
    return copy


def num_classes_of(data: Namespace) -> int:
    """Classes of a configuration's data set, from its ``data`` section; a usual number if it is not there."""
    if data.root == SYNTHETIC:
        return len(CLASS_NAMES)
    return read_dataset_yaml(data.root).num_classes if Path(data.root).exists() else StepSpec.num_classes


def spec_of(
    config: Namespace, architecture: Architecture | None = None, stride_px: int = STRIDE_PX
) -> tuple[StepSpec, tuple[str, ...]]:
    """The training step of a parsed configuration, with the boxes of the worst image that its data set can give.

    Args:
        config: As for `settle_memory`.
        architecture: As there.
        stride_px: As there.

    Returns:
        The step, and what had to be assumed about the data set, in sentences.
    """
    root = config.data.root
    facts: dict[str, Any] = {"num_classes": num_classes_of(config.data)}
    notes: tuple[str, ...] = ()
    if root != SYNTHETIC and not Path(root).exists():
        notes = (f"{root} is not there: classes and boxes are assumed",)
    elif root != SYNTHETIC:
        counts = np.sort(np.diff(index_of(scan_split(read_dataset_yaml(root), "train", index_folder())).box_offsets))
        worst = counts[-NUM_TILES:].sum() if config.data.augment.mosaic > 0 else counts[-1:].sum()
        facts["boxes_per_image"] = max(int(worst), 1)
    largest = image_sizes(config.data.image_size, config.data.multi_scale, stride_px)[-1]
    if config.data.multi_scale:
        notes += (f"data.multi_scale: planned for its largest image, {largest} px; data.image_size stays as it is",)
    model = model_config_of(config.model)
    return StepSpec(model, image_size=largest, architecture=architecture, **facts), notes


def model_config_of(section: Namespace) -> ModelConfig:
    """The ``model`` section of a parsed configuration as the object that it describes.

    Raises:
        ValueError: If a value is out of range.
    """
    values = vars(section)
    defaults = vars(ModelConfig())
    below = {key: type(defaults[key])(**vars(part)) for key, part in values.items() if isinstance(part, Namespace)}
    return ModelConfig(**values | below)


def what_fits(spec: StepSpec, budget_bytes: int) -> str:
    """The largest smaller image size at which a single image fits a budget, as a remedy in one sentence."""
    step_px = 2 * network_on_meta(spec.network, spec.num_classes).step_px
    for image_size in range(spec.image_size - step_px, 0, -step_px):
        try:
            recommend(replace(spec, image_size=image_size), budget_bytes, batch_size=1)
        except ConfigError:
            continue
        return f"data.image_size {image_size} fits {format_bytes(budget_bytes)}, or take a smaller model.network"
    return f"no image size fits {format_bytes(budget_bytes)}: close other programs, or take a smaller model.network"


def _warn_if_too_much(plan: Recommendation, budget_bytes: int) -> None:
    if plan.peak_bytes > budget_bytes:
        log.warning(
            "data.micro_batch_size: %d: needs %s by the plan, the budget is %s: set it and model.recompute to auto",
            plan.micro_batch,
            format_bytes(plan.peak_bytes),
            format_bytes(budget_bytes),
        )
