"""Sums over the optimizer steps of one epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.training.step import StepOutcome


@dataclass
class EpochStatistics:
    """Running sums over the outcomes of an epoch's windows, on the host."""

    max_grad_norm: float
    """Norm above which a gradient is clipped; 0 if none is."""
    num_taken: int = 0
    num_clipped: int = 0
    num_skipped: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(StepOutcome._fields[:4], 0.0))

    def add(self, outcome: StepOutcome | None) -> None:
        """Count the outcome of a window; None counts nothing."""
        if outcome is None:
            return
        if not outcome.finite:
            self.num_skipped += 1
            return
        self.num_taken += 1
        self.num_clipped += 0 < self.max_grad_norm < outcome.grad_norm
        for name in self.sums:
            self.sums[name] += getattr(outcome, name)

    def summary(self) -> dict[str, float]:
        """Return means over the steps taken (losses, gradient norm), the share of clipped steps and skipped windows."""
        num_taken = max(self.num_taken, 1)
        means = {f"train/{name}": total / num_taken for name, total in self.sums.items()}
        return means | {
            "train/clip_rate": self.num_clipped / num_taken,
            "train/skipped_windows": float(self.num_skipped),
        }
