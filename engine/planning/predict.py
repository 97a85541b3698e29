"""Plans a training step: predicts its memory from a few simulations and chooses how to split and recompute it.

**Affine in the micro-batch.** Nearly every storage of a step has a fixed size or one in proportion to the micro-batch.
So what is alive at any moment is affine in the micro-batch, and the peak, the largest over all moments, bends
upwards only: a straight line between two simulations lies on it or a little above. (The loss, which works in chunks of
bounded size, can put it a little below.) For YOLO11l the error is under 0.5 %, for YOLO11n up to 4 %
(benchmarks/plan_error.py), so what is recommended is simulated itself. In image size memory is not affine: attention
grows with the fourth power of the side. So every size is simulated.

**Mixed levels.** Between `elementwise` and `block` there are plans that repeat some layers only, those first that save
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
    Components,
    Option,
    Plan,
    PlanRow,
    Recommendation,
    choose,
    margin_of,
    verdict_of,
)
from engine.planning.simulation import StepSpec, network_on_meta, simulate_step
from engine.training.precision import AUTOCAST_DTYPE
from models.recompute.levels import Level
from models.recompute.rank import LayerGain, rank_layers

ANCHOR_RATIO = 4
"""Simulated are the largest micro-batch, a quarter of it, and so on as far as needed; between lie straight lines."""
LINE_TOLERANCE = 1.05
"""How much more than a limit a straight line may say before a combination is given up without being simulated."""
FORWARDS_PER_STEP = 3
"""Arithmetic of forward and backward, in forward passes."""


def plan_step(
    spec: StepSpec,
    budget_bytes: int,
    batch_size: int,
    micro_batch_size: int | None = None,
    recompute: Level | None = None,
) -> Plan:
    """Plan the fastest step that stays within a budget; the plan's only row is the recommended combination.

    Args:
        spec: What the step is made of.
        budget_bytes: Most VRAM that the process may use, CUDA's context included.
        batch_size: Images of an optimizer step on one device: the effective batch over the number of devices.
        micro_batch_size: Fixed by the user; None to choose it.
        recompute: Fixed by the user, for all layers; None to choose it, or a mixture.

    Raises:
        ConfigError: If nothing fits, saying what the least demanding combination needs.
    """
    recommended = recommend(spec, budget_bytes, batch_size, micro_batch_size, recompute)
    row = PlanRow(
        micro_batch=recommended.micro_batch,
        image_size=spec.image_size,
        precision=spec.model.precision,
        recompute=recommended.recompute,
        peak_bytes=recommended.peak_bytes,
        components=recommended.components,
        verdict=verdict_of(recommended.peak_bytes, budget_bytes),
    )
    return Plan(budget_bytes, margin_of(budget_bytes), (row,), recommended)


def recommend(
    spec: StepSpec,
    budget_bytes: int,
    batch_size: int,
    micro_batch_size: int | None = None,
    recompute: Level | None = None,
    largest: int | None = None,
) -> Recommendation:
    """The recommendation of `plan_step`.

    Args:
        spec: As there.
        budget_bytes: As there.
        batch_size: As there.
        micro_batch_size: As there.
        recompute: As there.
        largest: Micro-batch to simulate for predictions below it, if larger than the batch.

    Raises:
        ConfigError: As there.
    """
    largest = max(batch_size, largest or 0)
    options = recompute_options(spec, largest, recompute)
    choice = choose(options, budget_bytes, batch_size, micro_batch_size)
    return Recommendation(
        micro_batch=choice.micro_batch,
        accumulate=choice.accumulate,
        recompute=choice.option.recompute,
        precision=spec.model.precision,
        image_size=spec.image_size,
        peak_bytes=choice.peak_bytes,
        components=choice.components,
        extra_time=choice.option.extra_time,
        recompute_layers=choice.option.recompute_layers,
    )


def described(
    spec: StepSpec, batch_size: int, micro_batch_size: int, recompute: Level, layer_levels: Mapping[int, Level]
) -> Recommendation:
    """What a step needs whose settings the user has fixed, whether or not it fits anything."""
    accumulate = -(-batch_size // micro_batch_size)
    found = simulate_step(spec, micro_batch_size, recompute, layer_levels, accumulates=accumulate > 1)
    components = _whole(found, spec, micro_batch_size)
    return Recommendation(
        micro_batch=micro_batch_size,
        accumulate=accumulate,
        recompute=recompute,
        precision=spec.model.precision,
        image_size=spec.image_size,
        peak_bytes=sum(components.values()),
        components=components,
        extra_time=0.0,
    )


def predict(spec: StepSpec, largest: int, level: Level, micro_batch: int, accumulates: bool) -> Components:
    """Bytes by component at the peak of a step.

    Args:
        spec: What the step is made of.
        largest: Micro-batch at which simulations begin, going down.
        level: Recompute level of all layers.
        micro_batch: From 1 to ``largest``.
        accumulates: Whether several micro-batches make a step.
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
    """The same from one simulation, with some layers at level `block` instead."""
    if spec.model.precision == "bf16":
        spec = spec.at(spec.image_size, "fp16")  # the same bytes
    found = _simulated(spec, micro_batch, level, block_layers, accumulates)
    return _whole(found, spec, micro_batch)


def _whole(tensors: Components, spec: StepSpec, micro_batch: int) -> Components:
    """All components, out of those of the simulated tensors."""
    num_pixels = micro_batch * spec.image_size**2
    return dict.fromkeys(COMPONENTS, 0) | tensors | beside_tensors(num_pixels, *of_this_machine())


@cache
def _simulated(
    spec: StepSpec, micro_batch: int, level: Level, block_layers: tuple[int, ...], accumulates: bool
) -> Components:
    return simulate_step(spec, micro_batch, level, dict.fromkeys(block_layers, "block"), accumulates=accumulates)


def recompute_options(spec: StepSpec, largest: int, recompute: Level | None = None) -> list[Option]:
    """The ways to recompute, fastest first: the levels, and mixed ones.

    Args:
        spec: What the step is made of.
        largest: The largest micro-batch that will be asked for.
        recompute: If given, only this level.
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
    """One level for all layers: what a straight line calls possible is simulated before it is chosen."""

    def may_fit(micro_batch: int, accumulates: bool, limit_bytes: int) -> bool:
        return sum(predict(spec, largest, level, micro_batch, accumulates).values()) <= LINE_TOLERANCE * limit_bytes

    return Option(
        recompute=level,
        extra_time=extra_time,
        components=lambda micro_batch, accumulates: simulated(spec, micro_batch, level, (), accumulates),
        may_fit=may_fit,
    )


def _mixed(spec: StepSpec, largest: int, gains: tuple[LayerGain, ...]) -> Option:
    """Level `elementwise`, and `block` in some layers."""
    layers = tuple(sorted(gain.index for gain in gains))
    saved_bytes = sum(gain.saved_bytes for gain in gains)

    def may_fit(micro_batch: int, accumulates: bool, limit_bytes: int) -> bool:
        # At the moment of elementwise's peak the mixture holds that peak less what its layers save, and all layers at
        # level block hold about the least. Both are estimates, hence the 5 %; but a simulation takes seconds.
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
    """What level `block` saves per layer and image, best bargain first."""
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
    """Of level `elementwise`, as a part of a step at `none`."""
    return FUSED_EXTRA_TIME if spec.model.fused_kernels else UNFUSED_EXTRA_TIME


def _repeated_share(spec: StepSpec, gains: Sequence[LayerGain]) -> float:
    """Arithmetic that is repeated, as a part of that of a step."""
    repeated_flops = sum(gain.repeated_flops for gain in gains)
    return repeated_flops / (FORWARDS_PER_STEP * _forward_flops(spec)) if gains else 0.0
