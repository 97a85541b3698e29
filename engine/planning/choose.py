"""Which combination of micro-batch, accumulation and recompute level is the fastest that stays within a budget.

Pure arithmetic over predicted bytes; where the prediction comes from is the caller's business
(`engine.planning.simulation`).

**Time.** A step of ``batch_size`` images in ``accumulate`` micro-batches costs, in units of what one image costs
without recomputation,

    batch_size * (1 + extra_time) + accumulate * MICRO_BATCH_COST

``extra_time`` belongs to the recompute level: what backward computes again, as a part of a step, less what fused
kernels save. The second term is what each micro-batch costs beside its images: launching kernels, and a device that is
not filled. So a larger micro-batch wins over a smaller one at the same level, and a cheaper level over a dearer one at
the same micro-batch; between the two the numbers decide. This ranks plans; it does not predict seconds.
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
"""Who holds VRAM. The first ones are the same for every micro-batch."""
Components = dict[str, int]
"""Bytes by component, all of `COMPONENTS`; their sum is the peak."""
Verdict = Literal["fits", "tight", "spills"]

MARGIN_SHARE = 0.05
"""Part of the budget that a recommended plan leaves free: for gaps between the allocator's blocks, and for what a
prediction without the GPU cannot know."""
MICRO_BATCH_COST = 4.0
"""What a micro-batch costs beside its images, in images: 16 + 16 images are then 11 % slower than 32 at once. On an
H200 it is 17 % (benchmarks/results/gpu_steps_2026-11-26.json); smaller cards are filled by fewer images."""
FUSED_EXTRA_TIME = -0.12
"""Of level `elementwise` with fused kernels, which `none` has not, as a part of a step: on an H200 -7 to -15 % in fp16
(benchmarks/results/gpu_steps_2026-11-26.json)."""
UNFUSED_EXTRA_TIME = 0.1
"""The same with PyTorch's own kernels: measured on a CPU (benchmarks/results/step_time_cpu_2026-11-26.json)."""


@dataclass(frozen=True)
class PlanRow:
    """What one combination needs."""

    micro_batch: int
    image_size: int
    precision: str
    recompute: Level
    peak_bytes: int
    """Predicted use of the device by this process."""
    components: Components
    """The same bytes by holder."""
    verdict: Verdict


@dataclass(frozen=True)
class Recommendation:
    """How to train."""

    micro_batch: int
    accumulate: int
    """Micro-batches in an optimizer step; the last one may be smaller than the others."""
    recompute: Level
    precision: str
    image_size: int
    peak_bytes: int
    components: Components = field(repr=False)
    extra_time: float
    """Computed again in backward, as a part of a step's time."""
    recompute_layers: tuple[int, ...] = ()
    """Top-level layers at level `block` on top of ``recompute``."""

    @property
    def layer_levels(self) -> dict[int, Level]:
        """The value of ``model.recompute_layers``."""
        return dict.fromkeys(self.recompute_layers, "block")


@dataclass(frozen=True)
class Plan:
    """A table, and what to do."""

    budget_bytes: int
    margin_bytes: int
    """What the recommendation leaves free of the budget."""
    rows: tuple[PlanRow, ...]
    recommended: Recommendation


@dataclass(frozen=True)
class Option:
    """A way to recompute, its price and its memory."""

    recompute: Level
    extra_time: float
    """What it adds to the time of a step, as a part of it."""
    components: Callable[[int, bool], Components]
    """From the micro-batch, and whether several of them make a step."""
    recompute_layers: tuple[int, ...] = ()
    may_fit: Callable[[int, bool, int], bool] = lambda micro_batch, accumulates, limit_bytes: True
    """From the same and a limit in bytes: False only if ``components`` is sure to exceed it. For what is slow."""


def margin_of(budget_bytes: int) -> int:
    """What a recommendation leaves free of a budget."""
    return round(MARGIN_SHARE * budget_bytes)


def verdict_of(peak_bytes: int, budget_bytes: int) -> Verdict:
    """``fits`` within the budget less the margin, ``tight`` within the budget, else ``spills``."""
    if peak_bytes > budget_bytes:
        return "spills"
    return "fits" if peak_bytes <= budget_bytes - margin_of(budget_bytes) else "tight"


def time_of_step(batch_size: int, accumulate: int, extra_time: float) -> float:
    """Relative time of an optimizer step, in images: see the module's text."""
    return batch_size * (1 + extra_time) + accumulate * MICRO_BATCH_COST


@dataclass(frozen=True)
class Choice:
    """An option with a micro-batch for it."""

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
        """Relative time of a step."""
        return time_of_step(batch_size, self.accumulate, self.option.extra_time)

    def fits(self, limit_bytes: int) -> bool:
        """Whether the peak is at most the limit."""
        may_fit = self.option.may_fit(self.micro_batch, self.accumulate > 1, limit_bytes)
        return may_fit and self.peak_bytes <= limit_bytes


def splits(batch_size: int, micro_batch_size: int | None = None) -> list[tuple[int, int]]:
    """The ways to cut a batch: (micro-batch, accumulate), evened out, largest micro-batch first.

    40 images in three micro-batches are 14 + 14 + 12, not 16 + 16 + 8: the same time, less memory.

    Args:
        batch_size: Images of an optimizer step on this device.
        micro_batch_size: If given, the only one, taken as it is.
    """
    if micro_batch_size is not None:
        return [(micro_batch_size, -(-batch_size // micro_batch_size))]
    micro_batches = sorted({-(-batch_size // parts) for parts in range(1, batch_size + 1)}, reverse=True)
    return [(micro_batch, -(-batch_size // micro_batch)) for micro_batch in micro_batches]


def choose(
    options: Sequence[Option], budget_bytes: int, batch_size: int, micro_batch_size: int | None = None
) -> Choice:
    """The fastest choice whose peak is within the budget less the margin.

    Args:
        options: Ways to recompute. Of equally fast choices the one that comes first here wins.
        budget_bytes: Most VRAM that the process may use.
        batch_size: Images of an optimizer step on this device: the effective batch, or this device's share.
        micro_batch_size: Fixed by the user, or None.

    Raises:
        ConfigError: If nothing fits, naming the smallest need.
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
    raise nothing_fits(choices, budget_bytes)


def nothing_fits(choices: Iterable[Choice], budget_bytes: int) -> ConfigError:
    """The error that says what the least demanding choice needs."""
    whole_levels = [choice for choice in choices if not choice.option.recompute_layers]
    micro_batch = min(choice.micro_batch for choice in whole_levels)
    smallest = min(
        (choice for choice in whole_levels if choice.micro_batch == micro_batch), key=lambda choice: choice.peak_bytes
    )
    enough_bytes = smallest.peak_bytes / (1 - MARGIN_SHARE)
    enough = format_bytes(-int(-enough_bytes // (100 * MIB)) * 100 * MIB)
    return ConfigError(
        f"memory.budget: {format_bytes(budget_bytes)}: nothing fits: the least, micro-batch {smallest.micro_batch} at "
        f"recompute {smallest.option.recompute}, needs {format_bytes(smallest.peak_bytes)} and {MARGIN_SHARE:.0%} of "
        f"the budget as a margin: give {enough}, lower data.image_size, or take a smaller model.network"
    )
