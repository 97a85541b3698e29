"""Plan a training step: predict its memory from a few simulations, and choose micro-batch and recompute levels.

**Affine in the micro-batch.** Nearly every storage of a step has a fixed size or one in proportion to the micro-batch.
So the bytes that are alive at any moment are an affine function of the micro-batch. The peak is the largest of these
functions, so it is convex: a straight line between two simulations lies on it or a little above. (The loss works in
chunks of bounded size, so the line can lie a little below.) The error is under 0.5 % for YOLO11l and up to 4 % for
YOLO11n (benchmarks/plan_error.py). Therefore the recommended plan is itself simulated. Memory is not affine in the
image size, because attention grows with the fourth power of the side; every size is simulated.

**Mixed levels.** Between `elementwise` and `block` there are plans that repeat only some layers: those that save the
most bytes for their arithmetic (`models.recompute.rank`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.memory.overhead import beside_tensors, of_this_machine
from engine.planning.choose import (
    COMPONENTS,
    FUSED_EXTRA_TIME,
    UNFUSED_EXTRA_TIME,
    Choice,
    Components,
    Option,
    Recommendation,
    choose,
    splits,
)
from engine.planning.simulation import StepSpec, network_on_meta, simulate_step
from engine.training.precision import AUTOCAST_DTYPE
from models.recompute.levels import Level
from models.recompute.rank import LayerGain, rank_layers

ANCHOR_RATIO = 4
"""Ratio between simulated micro-batches, from the largest one down; straight lines connect them."""
LINE_TOLERANCE = 1.05
"""A combination is not simulated if the straight line exceeds the limit by more than this factor."""
FORWARDS_PER_STEP = 3
"""Arithmetic of forward and backward together, in forward passes."""


def recommend(
    spec: StepSpec,
    budget_bytes: int,
    batch_size: int,
    micro_batch_size: int | None = None,
    recompute: Level | None = None,
    largest: int | None = None,
) -> Recommendation:
    """Plan the fastest step that stays within a budget.

    Args:
        spec: The step.
        budget_bytes: Most VRAM that the process may use, CUDA's context included.
        batch_size: Images of an optimizer step on one device.
        micro_batch_size: Fixed by the user; None to choose it.
        recompute: Level of all layers, fixed by the user; None to choose one or to mix two.
        largest: Largest micro-batch to simulate, if larger than the batch.

    Raises:
        ConfigError: If nothing fits, with the need of the smallest plan.
    """
    options = recompute_options(spec, max(batch_size, largest or 0), recompute)
    return _recommendation(spec, choose(options, budget_bytes, batch_size, micro_batch_size))


def described(
    spec: StepSpec, batch_size: int, micro_batch_size: int, recompute: Level, layer_levels: Mapping[int, Level]
) -> Recommendation:
    """Predict the memory of a step whose settings are all fixed by the user, within a budget or not."""

    def components(micro_batch: int, accumulates: bool) -> Components:
        found = simulate_step(spec, micro_batch, recompute, layer_levels, accumulates=accumulates)
        return _whole(found, spec, micro_batch)

    [(micro_batch, accumulate)] = splits(batch_size, micro_batch_size)
    return _recommendation(spec, Choice(Option(recompute, 0.0, components), micro_batch, accumulate))


def _recommendation(spec: StepSpec, choice: Choice) -> Recommendation:
    components = choice.components
    return Recommendation(
        micro_batch=choice.micro_batch,
        accumulate=choice.accumulate,
        recompute=choice.option.recompute,
        precision=spec.model.precision,
        image_size=spec.image_size,
        peak_bytes=sum(components.values()),
        components=components,
        extra_time=choice.option.extra_time,
        recompute_layers=choice.option.recompute_layers,
    )


def predict(spec: StepSpec, largest: int, level: Level, micro_batch: int, accumulates: bool) -> Components:
    """Predict the bytes by component at the peak of a step with one recompute level for all layers.

    ``micro_batch`` is at most ``largest``, the largest one to simulate; if ``accumulates``, a step has several.
    """
    while micro_batch <= largest // ANCHOR_RATIO:
        largest //= ANCHOR_RATIO
    high = simulated(spec, largest, level, (), accumulates)
    if micro_batch == largest:
        return high
    smallest = largest // ANCHOR_RATIO or 1
    low = simulated(spec, smallest, level, (), accumulates)
    share = (micro_batch - smallest) / (largest - smallest)
    return {name: round(low[name] + share * (high[name] - low[name])) for name in COMPONENTS}


def simulated(
    spec: StepSpec, micro_batch: int, level: Level, block_layers: tuple[int, ...], accumulates: bool
) -> Components:
    """Predict the bytes by component from one simulation; ``block_layers`` have level `block`, the others ``level``."""
    if spec.model.precision == "bf16":
        spec = spec.at(spec.image_size, "fp16")  # the same bytes
    found = _simulated(spec, micro_batch, level, block_layers, accumulates)
    return _whole(found, spec, micro_batch)


def _whole(tensors: Components, spec: StepSpec, micro_batch: int) -> Components:
    """All components, given those of the simulated tensors."""
    num_pixels = micro_batch * spec.image_size**2
    return dict.fromkeys(COMPONENTS, 0) | tensors | beside_tensors(num_pixels, *of_this_machine())


@cache
def _simulated(
    spec: StepSpec, micro_batch: int, level: Level, block_layers: tuple[int, ...], accumulates: bool
) -> Components:
    return simulate_step(spec, micro_batch, level, dict.fromkeys(block_layers, "block"), accumulates=accumulates)


def recompute_options(spec: StepSpec, largest: int, recompute: Level | None = None) -> list[Option]:
    """All choices of recompute levels, fastest first: one level for all layers, or a mixture.

    ``largest`` is the largest micro-batch to simulate. If ``recompute`` is given, return only this level.
    """
    levels = list(get_args(Level)) if recompute is None else [recompute]
    gains = layer_gains(spec) if "block" in levels else ()
    elementwise = _elementwise_extra_time(spec)
    extra_time = {"none": 0.0, "elementwise": elementwise, "block": elementwise + _repeated_share(spec, gains)}
    options = [_whole_level(spec, largest, level, extra_time[level]) for level in levels]
    if recompute is None and "block" in levels:
        options += [_mixed(spec, largest, gains[:count]) for count in range(1, len(gains))]
    return sorted(options, key=lambda option: option.extra_time)


def _whole_level(spec: StepSpec, largest: int, level: Level, extra_time: float) -> Option:
    """One level for all layers."""

    def may_fit(micro_batch: int, accumulates: bool, limit_bytes: int) -> bool:
        return sum(predict(spec, largest, level, micro_batch, accumulates).values()) <= LINE_TOLERANCE * limit_bytes

    return Option(
        recompute=level,
        extra_time=extra_time,
        components=lambda micro_batch, accumulates: simulated(spec, micro_batch, level, (), accumulates),
        may_fit=may_fit,
    )


def _mixed(spec: StepSpec, largest: int, gains: tuple[LayerGain, ...]) -> Option:
    """Level `block` in some layers and `elementwise` in the others."""
    layers = tuple(sorted(gain.index for gain in gains))
    saved_bytes = sum(gain.saved_bytes for gain in gains)

    def may_fit(micro_batch: int, accumulates: bool, limit_bytes: int) -> bool:
        # At the moment of elementwise's peak, the mixture holds that peak less what its layers save. It never holds
        # less than block. Both are estimates, hence the tolerance; but a simulation takes seconds.
        least, elementwise = (
            sum(predict(spec, largest, level, micro_batch, accumulates).values()) for level in ("block", "elementwise")
        )
        return max(least, elementwise - micro_batch * saved_bytes) <= LINE_TOLERANCE * limit_bytes

    return Option(
        recompute="elementwise",
        extra_time=_elementwise_extra_time(spec) + _repeated_share(spec, gains),
        components=lambda micro_batch, accumulates: simulated(spec, micro_batch, "elementwise", layers, accumulates),
        recompute_layers=layers,
        may_fit=may_fit,
    )


@cache
def layer_gains(spec: StepSpec) -> tuple[LayerGain, ...]:
    """What level `block` saves per layer and image; first the layers that save most for their arithmetic."""
    network = network_on_meta(spec.network, spec.num_classes).network
    size, dtype = spec.image_size, AUTOCAST_DTYPE[spec.model.precision]
    return tuple(rank_layers(network, torch.empty(1, 3, size, size, dtype=dtype, device="meta")))


@cache
def _forward_flops(spec: StepSpec) -> int:
    network = network_on_meta(spec.network, spec.num_classes).network
    images = torch.empty(1, 3, spec.image_size, spec.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return int(counter.get_total_flops())


def _elementwise_extra_time(spec: StepSpec) -> float:
    """Extra time of level `elementwise`, as a share of a step at `none`."""
    return FUSED_EXTRA_TIME if spec.model.fused_kernels else UNFUSED_EXTRA_TIME


def _repeated_share(spec: StepSpec, gains: Sequence[LayerGain]) -> float:
    """Repeated arithmetic, as a share of the arithmetic of a step."""
    repeated_flops = sum(gain.repeated_flops for gain in gains)
    return repeated_flops / (FORWARDS_PER_STEP * _forward_flops(spec)) if gains else 0.0
