"""Notice when VRAM spills into system RAM: memory is full and steps have become slow.

When the card is full, the driver of Windows and WSL serves VRAM from system RAM. It raises no error; training only
becomes many times slower. Neither sign alone is a spill: a good plan fills the card, and a loader, a validation or a
checkpoint can slow a step down. So both signs must hold for some steps in a row. If torch alone holds more than the
card has, speed does not matter.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from engine.memory.probe import MemorySample
from engine.memory.units import format_bytes

FULL_SHARE = 0.95
"""Share of the device's memory that counts as full: Windows keeps the rest for itself."""
SLOW_FACTOR = 2.5
STEPS_IN_A_ROW = 5
NUM_FIRST_STEPS = 3
"""Steps at the start that do not count for speed, because kernels are loaded and chosen in them."""
MIN_USUAL_STEPS = 5
MAX_USUAL_STEPS = 200


@dataclass(frozen=True)
class SpillReport:
    """The evidence of a spill and its cost."""

    used_bytes: int
    total_bytes: int
    beyond_bytes: int
    """Bytes that this run needs beyond what the card has; 0 if other programs took its memory."""
    slowdown: float | None
    """Time of a step as a multiple of the usual time; None if the usual time is not known."""

    def sentence(self, micro_batch_size: int) -> str:
        """The spill, its cost and its remedies, in one line."""
        cost = "steps are many times slower than necessary"
        if self.slowdown is not None:
            cost = f"a step takes {self.slowdown:.1f} times as long as before"
        if self.beyond_bytes:
            reason = f"this run needs about {format_bytes(self.beyond_bytes)} more than the card has"
        else:
            reason = "other programs have taken memory of this run"
        remedy = "Raise model.recompute"
        if micro_batch_size > 1:
            smaller = f"{micro_batch_size} to {micro_batch_size // 2}"
            remedy = f"Lower data.micro_batch_size from {smaller} (the effective batch stays), raise model.recompute"
        in_use = f"{format_bytes(self.used_bytes)} of {format_bytes(self.total_bytes)} in use"
        return (
            f"VRAM is spilling into system RAM ({in_use}, {reason}) and {cost}. "
            f"{remedy}, or close other programs on the GPU."
        )


class SpillGuard:
    """Watches training steps; call `observe` after each."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._usual_seconds: deque[float] = deque(maxlen=MAX_USUAL_STEPS)
        self._slow_seconds: deque[float] = deque(maxlen=STEPS_IN_A_ROW)
        self._beside_torch_bytes = 0
        self._is_reported = False

    def observe(self, sample: MemorySample, busy_seconds: float, waited_seconds: float = 0.0) -> SpillReport | None:
        """Judge a training step.

        Args:
            sample: Memory after the step.
            busy_seconds: Duration of the step without the wait for the loader.
            waited_seconds: Duration of the wait for the loader before the step.

        Returns:
            A report after some spilling steps in a row, once until memory has been free again.
        """
        self._num_steps += 1
        used_bytes, reserved_bytes, total_bytes = sample.used_bytes, sample.reserved_bytes, sample.total_bytes
        if used_bytes is None or reserved_bytes is None or total_bytes is None:
            return None
        exceeds_card = reserved_bytes > total_bytes
        is_full = exceeds_card or used_bytes >= FULL_SHARE * total_bytes
        if not is_full:
            self._beside_torch_bytes = used_bytes - reserved_bytes
            self._is_reported = False
        is_known = len(self._usual_seconds) >= MIN_USUAL_STEPS
        usual_seconds = median(self._usual_seconds) if is_full and is_known else math.inf
        if not (exceeds_card or busy_seconds >= SLOW_FACTOR * usual_seconds):
            self._slow_seconds.clear()
            if self._num_steps > NUM_FIRST_STEPS:
                # Add the wait: the device computes meanwhile, so the busy time alone would be too short.
                self._usual_seconds.append(busy_seconds + waited_seconds)
            return None
        self._slow_seconds.append(busy_seconds)
        if len(self._slow_seconds) < STEPS_IN_A_ROW or self._is_reported:
            return None
        self._is_reported = True
        return SpillReport(
            used_bytes=used_bytes,
            total_bytes=total_bytes,
            beyond_bytes=max(reserved_bytes + self._beside_torch_bytes - total_bytes, 0),
            slowdown=median(self._slow_seconds) / usual_seconds if is_known else None,
        )

    def rearm(self) -> None:
        """Allow another report, if training still spills after a remedy."""
        self._slow_seconds.clear()
        self._is_reported = False
