"""Learning rate and momentum of every optimizer step: warm-up, then a linear or cosine decay.

The schedule counts optimizer steps that were taken. It does not depend on the micro-batch and does not advance with a
skipped window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class ScheduleConfig:
    """How learning rate and momentum change during the run."""

    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the decay from ``lr`` to ``lr * final_lr_fraction``."""
    final_lr_fraction: float = 0.01
    """Learning rate at the end of the run, as a fraction of ``lr``."""
    warmup_epochs: float = 3.0
    """Epochs in which the learning rate rises from 0. The last epoch of the run is never warm-up."""
    warmup_bias_lr: float = 0.0
    """First learning rate of biases. 0.1 suits SGD; AdamW would move every bias by this much in its first step."""
    warmup_momentum: float = 0.8
    """First momentum of SGD. AdamW keeps its betas."""
    per_epoch: bool = False
    """Change the learning rate once per epoch, as Ultralytics does, and not at every step."""

    def __post_init__(self) -> None:
        """Raise a ValueError with key, value and rule if a value is out of range."""
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"model.schedule.final_lr_fraction: {self.final_lr_fraction}: must be between 0 and 1")
        for key in ("warmup_epochs", "warmup_bias_lr"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.schedule.{key}: {getattr(self, key)}: must not be negative")
        if not 0 <= self.warmup_momentum < 1:
            raise ValueError(f"model.schedule.warmup_momentum: {self.warmup_momentum}: must be in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """The schedule of a run of ``max_epochs`` x ``steps_per_epoch`` optimizer steps."""

    config: ScheduleConfig
    max_epochs: int
    steps_per_epoch: int

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return round(min(self.config.warmup_epochs, self.max_epochs - 1) * self.steps_per_epoch)

    def decay_factor(self, step: int) -> float:
        """Fraction of the base learning rate at an optimizer step, without warm-up."""
        epochs = step / self.steps_per_epoch
        progress = min(math.floor(epochs) if self.config.per_epoch else epochs, self.max_epochs) / self.max_epochs
        remaining = 1 - progress if self.config.decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return remaining * (1 - self.config.final_lr_fraction) + self.config.final_lr_fraction

    def apply(self, optimizer: torch.optim.Optimizer, step: int, lr: float, momentum: float) -> None:
        """Set the learning rate, and the momentum of SGD, after ``step`` optimizer steps were taken.

        ``optimizer`` has the groups of `build_optimizer`; ``lr`` and ``momentum`` are the values after warm-up.
        """
        target = lr * self.decay_factor(step)
        warm = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        for group in optimizer.param_groups:
            start = self.config.warmup_bias_lr if group["name"] == "bias" else 0.0
            group["lr"] = start + (target - start) * warm
            if "momentum" in group:
                group["momentum"] = self.config.warmup_momentum + (momentum - self.config.warmup_momentum) * warm
