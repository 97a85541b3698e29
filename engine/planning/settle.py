"""Before a run: resolve the VRAM budget, and replace each ``auto`` by the value of a plan.

On a GPU every run has a plan, so that it is known before the run whether it fits. On a CPU only ``auto`` needs a plan,
and the budget is RAM.
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
"""Images at a time for commands that do not train; validation takes fewer if they do not fit."""


@dataclass(frozen=True)
class MemoryAhead:
    """The plan of a run, before it starts."""

    budget_bytes: int
    batch_size: int
    """Images of an optimizer step on one device."""
    spec: StepSpec
    plan: Recommendation

    def __str__(self) -> str:
        """The plan in one line, printed at the start of a run."""
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
        """The remedy for the error that ends a run."""
        return what_fits(self.spec, self.budget_bytes)


def settle_memory(
    config: Namespace, architecture: Architecture | None = None, stride_px: int = STRIDE_PX
) -> tuple[Namespace, MemoryAhead | None]:
    """Resolve the budget, limit the allocator to it, and plan.

    Args:
        config: A parsed configuration.
        architecture: Architecture of the network; None takes that of ``model.network``.
        stride_px: Largest stride of the network.

    Returns:
        The parsed configuration without ``auto``, and the plan; no plan on a CPU if nothing was ``auto``.

    Raises:
        ConfigError: If nothing fits the budget, or the device has less free than the budget.
    """
    data, model = config.data, config.model
    check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale, stride_px)
    memory = MemoryConfig(**vars(config.memory))
    device = device_of(config.trainer)
    if device.type == "cuda":
        if memory.expandable_segments:
            enable_expandable_segments()
        torch.cuda.set_device(device)  # otherwise torch would open a context on the first device
    is_fixed = AUTO not in (data.micro_batch_size, model.recompute)
    if model.recompute_layers and not is_fixed:
        auto_key = "model.recompute" if model.recompute == AUTO else "data.micro_batch_size"
        raise ConfigError(
            f"model.recompute_layers: {model.recompute_layers}: {auto_key} auto plans without levels of single layers. "
            f"Leave them out, or set {auto_key} to a value."
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
    """Replace each ``auto`` of a parsed configuration, for a command that does not train.

    Raises:
        ConfigError: If sizes are wrong for the largest stride of the network, ``stride_px``.
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
    """Copy a parsed configuration with other values of some keys."""
    copy = config.clone()
    for key, value in values.items():
        copy[key] = value
    return copy


def num_classes_of(data: Namespace) -> int:
    """Count the classes of a configuration's ``data`` section; a usual number if the data set does not exist."""
    if data.root == SYNTHETIC:
        return len(CLASS_NAMES)
    return read_dataset_yaml(data.root).num_classes if Path(data.root).exists() else StepSpec.num_classes


def spec_of(
    config: Namespace, architecture: Architecture | None = None, stride_px: int = STRIDE_PX
) -> tuple[StepSpec, tuple[str, ...]]:
    """The training step of a parsed configuration, with as many boxes as the worst image of its data set.

    Args:
        config: As for `settle_memory`.
        architecture: As there.
        stride_px: As there.

    Returns:
        The step, and the assumptions about the data set, in sentences.
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
    largest_px = image_sizes(config.data.image_size, config.data.multi_scale, stride_px)[-1]
    if config.data.multi_scale:
        notes += (f"data.multi_scale: planned for its largest image, {largest_px} px; data.image_size is unchanged",)
    return StepSpec(_model_config(config.model), image_size=largest_px, architecture=architecture, **facts), notes


def _model_config(section: Namespace) -> ModelConfig:
    values = vars(section)
    defaults = vars(ModelConfig())
    below = {key: type(defaults[key])(**vars(part)) for key, part in values.items() if isinstance(part, Namespace)}
    return ModelConfig(**values | below)


def what_fits(spec: StepSpec, budget_bytes: int) -> str:
    """A remedy in one sentence: the largest smaller image size at which a single image fits the budget."""
    step_px = 2 * network_on_meta(spec.network, spec.num_classes).step_px
    for image_size in range(spec.image_size - step_px, 0, -step_px):
        try:
            recommend(replace(spec, image_size=image_size), budget_bytes, batch_size=1)
        except ConfigError:
            continue
        fits = f"{image_size}, which fits {format_bytes(budget_bytes)}"
        return f"Lower data.image_size to {fits}, or take a smaller model.network."
    return f"No image size fits {format_bytes(budget_bytes)}; close other programs or take a smaller model.network."


def _warn_if_too_much(plan: Recommendation, budget_bytes: int) -> None:
    if plan.peak_bytes > budget_bytes:
        log.warning(
            "data.micro_batch_size: %d: needs %s by the plan, the budget is %s. Set it and model.recompute to auto.",
            plan.micro_batch,
            format_bytes(plan.peak_bytes),
            format_bytes(budget_bytes),
        )
