"""Stopping and going on: ``last.ckpt`` also in the middle of an epoch, every few minutes and when asked to stop.

A checkpoint falls between two windows, so a run that goes on from it takes the very steps that it would have taken: the
weights are the same bit for bit. After the last window of an epoch, validation comes first and then the checkpoint
of the epoch's end.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from engine.errors import TrainingError
from engine.faults import go_on

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(TrainingError):
    """The run was asked to stop, and has saved where it was."""


class MidEpochCheckpoints(L.Callback):
    """Saves ``last.ckpt`` between two windows: when it is due, and before a run ends on Ctrl-C or SIGTERM."""

    def __init__(self, path: Path, minutes: float) -> None:
        """Save to ``path`` every so many minutes; 0 only when asked to stop."""
        self.path = path
        self.minutes = minutes
        self._signal: int | None = None
        self._former: dict[int, Any] = {}
        self._saved = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn which folder the first process has chosen."""
        self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, and start the clock."""
        self._saved = time.monotonic()
        self._former = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due; stop if asked to."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        agree = pl_module.step.ranks.any  # all of them save, or none
        must_stop = agree(self._signal is not None)
        if must_stop or agree(self._is_due()):
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if must_stop:
            self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if asked to during validation, whose checkpoint has been written meanwhile."""
        if pl_module.step.ranks.any(self._signal is not None):
            self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch's own checkpoint is being written."""
        self._saved = time.monotonic()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save what there is if the next window could not be had: the steps that were taken are not lost.

        Not after an error inside of a step, whose traces may be anywhere, and not with several processes, which would
        all have to take part.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        is_between_windows = progress.current.ready == progress.current.completed and not progress.is_last_batch
        is_ours = isinstance(exception, Interrupted | torch.AcceleratorError)
        if trainer.training and is_between_windows and not is_ours and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _is_due(self) -> bool:
        return 0 < self.minutes * 60 <= time.monotonic() - self._saved

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        print("\nstopping after this window, with a checkpoint; press Ctrl-C again to stop at once", file=sys.stderr)

    def _stop(self) -> None:
        name = signal.Signals(self._signal).name if self._signal is not None else "another process"
        raise Interrupted(f"stopped by {name}: {go_on(self.path)}")
