"""Learning rate and momentum of every optimizer step: warm-up, then a linear or cosine decay.

A schedule counts optimizer steps that were really taken, so it does not depend on the micro-batch and stands still
when a window is skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class ScheduleConfig:
    """How learning rate and momentum change over the run."""

    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the way from ``lr`` down to ``lr * final_lr_fraction``."""
    final_lr_fraction: float = 0.01
    """Learning rate at the end, as a fraction of ``lr``."""
    warmup_epochs: float = 3.0
    """Epochs during which the learning rate rises from 0; at most all but one epoch of the run."""
    warmup_bias_lr: float = 0.0
    """Learning rate from which biases start. SGD likes 0.1; AdamW moves every bias by this much in the first step."""
    warmup_momentum: float = 0.8
    """Momentum from which SGD starts. AdamW keeps its betas."""
    per_epoch: bool = False
    """Change the rate once an epoch, as Ultralytics does, instead of at every step."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the key, the value and the rule.
        """
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"model.schedule.final_lr_fraction: {self.final_lr_fraction}: must be between 0 and 1")
        for key in ("warmup_epochs", "warmup_bias_lr"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.schedule.{key}: {getattr(self, key)}: must not be negative")
        if not 0 <= self.warmup_momentum < 1:
            raise ValueError(f"model.schedule.warmup_momentum: {self.warmup_momentum}: must be in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """A configured schedule over a run of ``max_epochs`` x ``steps_per_epoch`` optimizer steps."""

    config: ScheduleConfig
    max_epochs: int
    steps_per_epoch: int

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps until the rate is fully up."""
        return round(min(self.config.warmup_epochs, self.max_epochs - 1) * self.steps_per_epoch)

    def decay_factor(self, step: int) -> float:
        """Fraction of the base learning rate at an optimizer step, warm-up aside."""
        epochs = step / self.steps_per_epoch
        progress = min(math.floor(epochs) if self.config.per_epoch else epochs, self.max_epochs) / self.max_epochs
        remaining = 1 - progress if self.config.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return remaining * (1 - self.config.final_lr_fraction) + self.config.final_lr_fraction

    def apply(self, optimizer: torch.optim.Optimizer, step: int, lr: float, momentum: float) -> None:
        """Set what the optimizer uses at optimizer step ``step``, counted from 0.

        Args:
            optimizer: With groups as `engine.training.optim.build_optimizer` makes them.
            step: Optimizer steps taken before this one.
            lr: Learning rate after warm-up.
            momentum: Momentum after warm-up; for groups that have the key ``momentum``.
        """
        target = lr * self.decay_factor(step)
        warm = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        for group in optimizer.param_groups:
            start = self.config.warmup_bias_lr if group["name"] == "bias" else 0.0
            group["lr"] = start + (target - start) * warm
            if "momentum" in group:
                group["momentum"] = self.config.warmup_momentum + (momentum - self.config.warmup_momentum) * warm
