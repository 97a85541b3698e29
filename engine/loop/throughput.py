"""The speed of training, and the share of time that it waits for data."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import lightning as L

WINDOW_STEPS = 50


class Throughput(L.Callback):
    """Measures steps on the host's clock, over the last `WINDOW_STEPS` optimizer steps.

    The host is at most one window ahead of the device, so both clocks agree over many steps.
    """

    def __init__(self) -> None:
        self.num_steps_measured = 0
        """All steps except the first one after each pause."""
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=WINDOW_STEPS)  # seconds, waiting, images
        self._step_ended: float | None = None
        self._waited = 0.0

    @property
    def images_per_second(self) -> float:
        """Training images per second, waiting included; 0 before the second step."""
        seconds = sum(step[0] for step in self._steps)
        return sum(step[2] for step in self._steps) / seconds if seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the time, 0 to 1, that training waited for the loader."""
        seconds = sum(step[0] for step in self._steps)
        return sum(step[1] for step in self._steps) / seconds if seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of an optimizer step, waiting included."""
        return sum(step[0] for step in self._steps) / len(self._steps) if self._steps else 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ignore the pause between epochs."""
        self._step_ended = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ignore the pause for a validation within an epoch (``trainer.val_check_interval``)."""
        self._step_ended = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Note that the window has arrived."""
        if self._step_ended is not None:
            self._waited = time.perf_counter() - self._step_ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the step, whose work is queued now."""
        now = time.perf_counter()
        if self._step_ended is not None:
            self._steps.append((now - self._step_ended, self._waited, len(batch)))
            self.num_steps_measured += 1
        self._step_ended = now
