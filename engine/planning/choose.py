"""Choose the fastest combination of micro-batch, accumulation and recompute level within a budget.

This file only computes with predicted bytes; `engine.planning.simulation` predicts them.

**Time.** A step of ``batch_size`` images in ``accumulate`` micro-batches takes, in units of the time of one image
without recomputation,

    batch_size * (1 + extra_time) + accumulate * MICRO_BATCH_COST

``extra_time`` belongs to the recompute level: the share of a step that backward computes again, less the share that
fused kernels save. `MICRO_BATCH_COST` covers launching kernels and a device that is not filled. So at one level the
larger micro-batch wins, and at one micro-batch the faster level wins. The result ranks plans; it does not predict
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from engine.errors import ConfigError
from engine.memory.units import MIB, format_bytes
from models.recompute.levels import Level

COMPONENTS = (
    "weights",
    "gradients",
    "momentum",
    "variance",
    "ema",
    "activations",
    "activation_gradients",
    "inputs",
    "loss",
    "autocast_copies",
    "temporaries",
    "workspaces",
    "allocator_rounding",
    "allocator_gaps",
    "cuda_context",
)
"""What VRAM is used for. The first five do not depend on the micro-batch."""
Components = dict[str, int]
"""Bytes of each of the `COMPONENTS`; their sum is the peak."""
Verdict = Literal["fits", "tight", "spills"]

MARGIN_SHARE = 0.05
"""Share of the budget that a recommended plan leaves free, for gaps between the allocator's blocks and for what a
prediction without the GPU cannot know."""
MICRO_BATCH_COST = 4.0
"""Extra time of each micro-batch, in images: 16 + 16 images are then 11 % slower than 32 at once. On an H200 they are
17 % slower (benchmarks/results/gpu_steps_2026-11-26.json); fewer images fill smaller cards."""
FUSED_EXTRA_TIME = -0.12
"""Extra time of level `elementwise` with fused kernels, as a share of a step at `none`: -7 to -15 % on an H200 in fp16
(benchmarks/results/gpu_steps_2026-11-26.json)."""
UNFUSED_EXTRA_TIME = 0.1
"""The same with PyTorch's kernels, measured on a CPU (benchmarks/results/step_time_cpu_2026-11-26.json)."""


@dataclass(frozen=True)
class PlanRow:
    """The predicted memory of one combination."""

    micro_batch: int
    image_size: int
    precision: str
    recompute: Level
    peak_bytes: int
    """Bytes that the process will use on the device."""
    components: Components
    verdict: Verdict


@dataclass(frozen=True)
class Recommendation:
    """A combination to train with."""

    micro_batch: int
    accumulate: int
    """Micro-batches of an optimizer step; the last one may be smaller."""
    recompute: Level
    precision: str
    image_size: int
    peak_bytes: int
    components: Components = field(repr=False)
    extra_time: float
    """Extra time of the recompute levels, as a share of a step at `none`."""
    recompute_layers: tuple[int, ...] = ()
    """Layers at level `block`; the others have level ``recompute``."""

    @property
    def layer_levels(self) -> dict[int, Level]:
        """The value of ``model.recompute_layers``."""
        return dict.fromkeys(self.recompute_layers, "block")


@dataclass(frozen=True)
class Option:
    """A choice of recompute levels, with its time and memory."""

    recompute: Level
    extra_time: float
    """Extra time, as a share of a step at `none`."""
    components: Callable[[int, bool], Components]
    """Bytes, given the micro-batch and whether a step has several of them."""
    recompute_layers: tuple[int, ...] = ()
    may_fit: Callable[[int, bool, int], bool] = lambda micro_batch, accumulates, limit_bytes: True
    """Cheap test before ``components``, with a limit in bytes: False if the peak surely exceeds the limit."""


def margin_of(budget_bytes: int) -> int:
    """Bytes of a budget that a recommendation leaves free."""
    return round(MARGIN_SHARE * budget_bytes)


def verdict_of(peak_bytes: int, budget_bytes: int) -> Verdict:
    """``fits``: within the budget less the margin; ``tight``: within the budget; ``spills``: above it."""
    if peak_bytes > budget_bytes:
        return "spills"
    return "fits" if peak_bytes <= budget_bytes - margin_of(budget_bytes) else "tight"


def time_of_step(batch_size: int, accumulate: int, extra_time: float) -> float:
    """Relative time of an optimizer step, in images: see the docstring of this file."""
    return batch_size * (1 + extra_time) + accumulate * MICRO_BATCH_COST


@dataclass(frozen=True)
class Choice:
    """An option together with a micro-batch."""

    option: Option
    micro_batch: int
    accumulate: int

    @property
    def components(self) -> Components:
        """Bytes by component."""
        return self.option.components(self.micro_batch, self.accumulate > 1)

    @property
    def peak_bytes(self) -> int:
        """Bytes at the peak."""
        return sum(self.components.values())

    def time(self, batch_size: int) -> float:
        """Relative time of an optimizer step, in images."""
        return time_of_step(batch_size, self.accumulate, self.option.extra_time)

    def fits(self, limit_bytes: int) -> bool:
        """Whether the peak is at most the limit."""
        may_fit = self.option.may_fit(self.micro_batch, self.accumulate > 1, limit_bytes)
        return may_fit and self.peak_bytes <= limit_bytes


def splits(batch_size: int, micro_batch_size: int | None = None) -> list[tuple[int, int]]:
    """All splits of a batch as (micro-batch, accumulate), largest micro-batch first.

    Micro-batches of a split differ little: 40 images are 14 + 14 + 12, which needs less memory than 16 + 16 + 8.

    ``batch_size`` is of one device. If ``micro_batch_size`` is given, return only the split into that size.
    """
    if micro_batch_size is not None:
        return [(micro_batch_size, -(-batch_size // micro_batch_size))]
    micro_batches = sorted({-(-batch_size // parts) for parts in range(1, batch_size + 1)}, reverse=True)
    return [(micro_batch, -(-batch_size // micro_batch)) for micro_batch in micro_batches]


def choose(
    options: Sequence[Option], budget_bytes: int, batch_size: int, micro_batch_size: int | None = None
) -> Choice:
    """Return the fastest choice whose peak is within the budget less the margin.

    Args:
        options: Choices of recompute levels; the first of equally fast ones wins.
        budget_bytes: Most VRAM that the process may use.
        batch_size: Images of an optimizer step on this device.
        micro_batch_size: Fixed by the user, or None.

    Raises:
        ConfigError: If nothing fits, with the smallest need.
    """
    limit_bytes = budget_bytes - margin_of(budget_bytes)
    choices = [
        Choice(option, micro_batch, accumulate)
        for micro_batch, accumulate in splits(batch_size, micro_batch_size)
        for option in options
    ]
    choices.sort(key=lambda choice: choice.time(batch_size))
    for choice in choices:
        if choice.fits(limit_bytes):
            return choice
    raise _nothing_fits(choices, budget_bytes)


def _nothing_fits(choices: Iterable[Choice], budget_bytes: int) -> ConfigError:
    whole_levels = [choice for choice in choices if not choice.option.recompute_layers]
    micro_batch = min(choice.micro_batch for choice in whole_levels)
    smallest = min(
        (choice for choice in whole_levels if choice.micro_batch == micro_batch), key=lambda choice: choice.peak_bytes
    )
    enough_bytes = smallest.peak_bytes / (1 - MARGIN_SHARE)
    enough = format_bytes(-int(-enough_bytes // (100 * MIB)) * 100 * MIB)
    return ConfigError(
        f"memory.budget: {format_bytes(budget_bytes)}: nothing fits. The smallest plan, micro-batch {micro_batch} at "
        f"recompute {smallest.option.recompute}, needs {format_bytes(smallest.peak_bytes)} and a margin of "
        f"{MARGIN_SHARE:.0%} of the budget. Give {enough}, lower data.image_size, or take a smaller model.network."
    )
