"""What happens when a gradient is inf or NaN: the whole window is skipped, counted and named."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.errors import TrainingError

log = logging.getLogger(__name__)
MAX_NAMES = 8


class NonFiniteGuard:
    """Counts skipped windows and ends the run after too many in a row."""

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.num_skipped = 0
        self.num_in_a_row = 0

    def record(self, finite: bool, names: Sequence[str]) -> None:
        """Note whether a window's gradient was finite; ``names`` are the images of that window.

        Raises:
            TrainingError: After ``max_in_a_row`` skipped windows without a good one between.
        """
        if finite:
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        shown = ", ".join(names[:MAX_NAMES]) + rest
        log.warning("optimizer step skipped (%d in all): its gradient is inf or NaN: %s", self.num_skipped, shown)
        if self.num_in_a_row >= self.max_in_a_row:
            raise TrainingError(
                f"{self.num_in_a_row} windows in a row had an inf or NaN gradient, the last with {shown}: "
                "lower model.optimizer.lr, use model.precision bf16 or fp32, or look at these images and labels"
            )
