"""Stopping and resuming: ``last.ckpt`` after every epoch, every few minutes within one, and when the run ends.

A checkpoint falls between two windows, so a resumed run takes the same steps as a run that never stopped: the weights
are equal bit for bit. A run that was stopped in a validation begins with that validation when it resumes.
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
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from engine.errors import TrainingError
from engine.run.faults import how_to_resume

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(TrainingError):
    """The run was asked to stop, and has written its checkpoint."""


class LastCheckpoint(Checkpoint):
    """Saves ``last.ckpt`` at the end of every epoch, between two windows when it is due, and before a run ends."""

    def __init__(self, path: Path, minutes: float) -> None:
        """Save to ``path``; within an epoch every ``minutes``, 0 for never."""
        self.path = path
        self.minutes = minutes
        self._signal: int | None = None
        self._former: dict[int, Any] = {}
        self._saved = time.monotonic()
        self._saved_step = -1
        self._max_steps = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn the run folder, which the first process has chosen; take over ``trainer.max_steps``.

        With Lightning's own limit, a resumed run would count an epoch twice if its checkpoint is of that epoch's end.
        """
        self.path = trainer.strategy.broadcast(self.path)
        loop = trainer.fit_loop.epoch_loop
        self._max_steps, loop.max_steps = loop.max_steps, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle the signals, and start the clock."""
        self._saved, self._saved_step = time.monotonic(), trainer.global_step
        self._former = {number: signal.signal(number, self._ask) for number in SIGNALS}
        self._check_max_steps(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Save if it is due or the epoch ends early; stop if asked to."""
        self._check_max_steps(trainer)
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.is_last_batch:
            return
        agree = pl_module.step.ranks.any  # all ranks save, or none
        must_stop = agree(self._signal is not None)
        if must_stop or loop.done or agree(self._is_due()):
            self._save(trainer)
        if must_stop:
            self._stop()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if asked to."""
        if _is_validating(trainer) and pl_module.step.ranks.any(self._signal is not None):
            self._save(trainer)
            self._stop()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop a single process if asked to; each of several processes has its own number of batches."""
        if _is_validating(trainer) and self._signal is not None and trainer.world_size == 1:
            self._save(trainer)
            self._stop()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """In a validation, save the loops in the state in which Lightning starts a validation."""
        if not trainer.validating:
            return
        loops = checkpoint["loops"]["fit_loop"]
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] |= {"ready": 0, "started": 0, "processed": 0, "completed": 0}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a signal arrived after the checkpoint of the epoch's end."""
        if pl_module.step.ranks.any(self._signal is not None):
            self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, unless the epoch has ended early: the checkpoint of that step resumes within it."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the steps that were taken if the next window, or a validation, has failed.

        It does not save after an error within a step, whose state may be incomplete, or with several processes, which
        would all have to take part.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        is_between_windows = progress.current.ready == progress.current.completed and not progress.is_last_batch
        can_be_saved = _is_validating(trainer) or (trainer.training and is_between_windows)
        is_ours = isinstance(exception, Interrupted | torch.AcceleratorError)
        has_news = self._saved_step not in (-1, trainer.global_step)
        if can_be_saved and has_news and not is_ours and trainer.world_size == 1:
            self._save(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved, self._saved_step = time.monotonic(), trainer.global_step

    def _check_max_steps(self, trainer: L.Trainer) -> None:
        if 0 <= self._max_steps <= trainer.global_step:
            trainer.should_stop = True

    def _is_due(self) -> bool:
        return 0 < self.minutes * 60 <= time.monotonic() - self._saved

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        print("\nstopping after this window, with a checkpoint; press Ctrl-C again to stop at once", file=sys.stderr)

    def _stop(self) -> None:
        name = signal.Signals(self._signal).name if self._signal is not None else "another process"
        raise Interrupted(f"stopped by {name}: {how_to_resume(self.path)}")


def _is_validating(trainer: L.Trainer) -> bool:
    """Whether this is a validation within a training."""
    return trainer.validating and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
