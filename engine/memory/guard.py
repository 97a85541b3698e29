"""Notices when VRAM spills into system RAM: memory is full, and steps have become slow.

Under Windows and WSL the driver meets a request that the card cannot meet from system RAM, behind the PCIe
bus; no error is raised, training only becomes many times slower. Neither sign alone means that: a full card
is what a good plan aims at, and a step may be slow because of a loader, a validation or a checkpoint. So
both must hold, for some steps in a row. Only when torch by itself holds more than the card has, speed need
not be compared.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from engine.memory.probe import MemorySample
from engine.memory.units import format_bytes

FULL_SHARE = 0.95
"""Part of the device's memory from which on it counts as full: Windows keeps the rest for itself."""
SLOW_FACTOR = 2.5
STEPS_IN_A_ROW = 5
NUM_FIRST_STEPS = 3
"""Steps at the start that say nothing about speed: kernels are being loaded and chosen."""
MIN_USUAL_STEPS = 5
MAX_USUAL_STEPS = 200


@dataclass(frozen=True)
class SpillReport:
    """Training spills: what it looks like, and what it costs."""

    used_bytes: int
    total_bytes: int
    beyond_bytes: int
    """How much more this run wants than the card has left for it; 0 if other programs have pushed it out."""
    slowdown: float | None
    """How many times longer a step takes than before; None if no undisturbed step came before."""

    def sentence(self, micro_batch_size: int) -> str:
        """What happens, what it costs, and what to change, in one sentence."""
        cost = "steps are many times slower than they could be"
        if self.slowdown is not None:
            cost = f"a step takes {self.slowdown:.1f} times as long as before"
        if self.beyond_bytes:
            reason = f"this run wants about {format_bytes(self.beyond_bytes)} more than there is"
        else:
            reason = "other programs have taken memory that this run had"
        remedy = "raise model.recompute"
        if micro_batch_size > 1:
            smaller = f"{micro_batch_size} to {micro_batch_size // 2}"
            remedy = f"lower data.micro_batch_size from {smaller} (the effective batch stays) or {remedy}"
        in_use = f"{format_bytes(self.used_bytes)} of {format_bytes(self.total_bytes)} in use"
        return (
            f"VRAM is spilling into system RAM ({in_use}, {reason}) and {cost}: "
            f"{remedy}, or close other programs on the GPU"
        )


class SpillGuard:
    """Watches training steps, one `observe` each."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._usual_seconds: deque[float] = deque(maxlen=MAX_USUAL_STEPS)
        self._slow_seconds: deque[float] = deque(maxlen=STEPS_IN_A_ROW)
        self._beside_torch_bytes: int | None = None
        self._is_reported = False

    def observe(self, sample: MemorySample, busy_seconds: float, waited_seconds: float = 0.0) -> SpillReport | None:
        """Take note of a training step.

        Args:
            sample: Memory after it.
            busy_seconds: How long the step took, without waiting for the loader.
            waited_seconds: How long it waited for the loader before.

        Returns:
            A report once training has been spilling for some steps, and not again until memory has been free.
        """
        self._num_steps += 1
        if sample.used_bytes is None or sample.reserved_bytes is None or sample.total_bytes is None:
            return None
        exceeds_card = sample.reserved_bytes > sample.total_bytes
        if not exceeds_card and sample.used_bytes < FULL_SHARE * sample.total_bytes:
            self._beside_torch_bytes = sample.used_bytes - sample.reserved_bytes
            self._is_reported = False
            is_spilling = False
        else:
            is_spilling = exceeds_card or self._is_slow(busy_seconds)
        if not is_spilling:
            self._slow_seconds.clear()
            if self._num_steps > NUM_FIRST_STEPS:
                # With the wait: the device works on meanwhile, so the busy time alone would be too little.
                self._usual_seconds.append(busy_seconds + waited_seconds)
            return None
        self._slow_seconds.append(busy_seconds)
        if len(self._slow_seconds) < STEPS_IN_A_ROW or self._is_reported:
            return None
        self._is_reported = True
        return self._report(sample)

    def rearm(self) -> None:
        """Report again if training still spills after a remedy."""
        self._slow_seconds.clear()
        self._is_reported = False

    def _is_slow(self, seconds: float) -> bool:
        is_known = len(self._usual_seconds) >= MIN_USUAL_STEPS
        return is_known and seconds >= SLOW_FACTOR * median(self._usual_seconds)

    def _report(self, sample: MemorySample) -> SpillReport:
        is_known = len(self._usual_seconds) >= MIN_USUAL_STEPS
        total_bytes = sample.total_bytes or 0
        wanted_bytes = (sample.reserved_bytes or 0) + (self._beside_torch_bytes or 0)
        slowdown = median(self._slow_seconds) / median(self._usual_seconds) if is_known else None
        return SpillReport(
            used_bytes=sample.used_bytes or 0,
            total_bytes=total_bytes,
            beyond_bytes=max(wanted_bytes - total_bytes, 0),
            slowdown=slowdown,
        )
