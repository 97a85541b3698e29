"""The best epoch: ``best.ckpt``, and the end of a run that finds no better one within its patience.

``best.ckpt`` holds the averaged weights, the network's description, its epoch and its score. A new epoch must beat the
score in the file, wherever its folder was moved to. If the disk refuses the file, the weights wait in host memory and
are written as soon as there is room.
"""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from engine.errors import ConfigError
from engine.run.checkpoint import read_checkpoint
from engine.run.checkpoint_io import previous_of, verify_checkpoint
from engine.training.ranks import Ranks

log = logging.getLogger(__name__)
MONITOR = "val/map50_95"


@dataclass(frozen=True)
class Best:
    """The epoch that a ``best.ckpt`` holds."""

    epoch: int
    """The number of the epoch, counted from 0."""
    global_step: int
    """Optimizer steps before its validation."""
    score: float
    """Its mAP50-95; NaN if there was nothing to measure."""

    def __str__(self) -> str:
        """Describe it for people, who count epochs from 1."""
        return f"epoch {self.epoch + 1}, mAP50-95 {self.score:.4f}"


def read_best(path: Path) -> Best | None:
    """Return what a ``best.ckpt`` holds; None if it is missing or damaged.

    Older files have the score in the state of Lightning's ModelCheckpoint.
    """
    try:
        verify_checkpoint(path, "best.ckpt")
        checkpoint = read_checkpoint(path, "best.ckpt")
    except ConfigError:
        return None
    states = [state for key, state in checkpoint.get("callbacks", {}).items() if MONITOR in key]
    former = next((state["best_model_score"] for state in states if "best_model_score" in state), math.nan)
    return Best(checkpoint["epoch"], checkpoint["global_step"], float(checkpoint.get("score", former)))


def settle_best(path: Path, num_steps_behind: int, came_from: Path) -> None:
    """Put the ``best.ckpt`` that belongs to a run which resumes after ``num_steps_behind`` steps at ``path``.

    It is ``came_from``, the one beside the checkpoint, or its previous file if that is damaged or of a later epoch.
    A file of a later epoch is kept as ``best.later.ckpt``.

    Raises:
        OSError: If it cannot be copied.
    """
    if came_from != path and came_from.is_file():
        for source, target in ((came_from, path), (previous_of(came_from), previous_of(path))):
            if source.is_file():
                shutil.copyfile(source, target)
    best, previous = read_best(path), read_best(previous_of(path))
    if best is not None and best.global_step <= num_steps_behind:
        return
    if best is not None:
        later = path.with_suffix(f".later{path.suffix}")
        path.replace(later)
        log.warning("%s: holds a later epoch than the run resumes from: renamed to %s", path, later.name)
    if previous is not None and previous.global_step <= num_steps_behind:
        previous_of(path).replace(path)


def is_better(score: float, best_score: float | None) -> bool:
    """Whether an epoch becomes the best one; while every score is 0 or NaN, the newest one does."""
    return best_score is None or score > best_score or not best_score > 0


class BestCheckpoint(Checkpoint):
    """Writes ``best.ckpt`` after each validation that beats it, and ends the run when its patience is over."""

    def __init__(self, path: Path, patience: int) -> None:
        """Write to ``path``; ``patience`` is in epochs, 0 for no end."""
        self.path = path
        self.patience = patience
        self.best: Best | None = None
        """The best epoch so far; only the first process knows it."""
        self._validated_epoch = -1
        self._unwritten: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn the run folder, which the first process has chosen."""
        self.path = trainer.strategy.broadcast(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``best.ckpt`` does not hold."""
        return {"validated_epoch": self._validated_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._validated_epoch = state_dict["validated_epoch"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the best epoch of a resumed run, whose patience may be over."""
        self._ranks = Ranks()
        every = trainer.check_val_every_n_epoch or 1  # None validates by steps only
        if not trainer.enable_validation or trainer.max_epochs // every == trainer.current_epoch // every:
            remedy = f"lower trainer.check_val_every_n_epoch ({every})"
            if not trainer.enable_validation:
                remedy = "leave trainer.limit_val_batches out"
            log.warning("%s: is not written, because no epoch of this run is validated: %s", self.path, remedy)
        if trainer.is_global_zero and trainer.ckpt_path is not None:
            self.best = read_best(self.path)
            if self.best is None and self._validated_epoch >= 0:
                log.warning("%s: is not there: it will hold the best epoch from here on", self.path)
        self._stop_if_patience_is_over(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the weights that were validated if they are better than those in ``best.ckpt``."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validated_epoch = trainer.current_epoch
        score = float(trainer.callback_metrics.get(MONITOR, math.nan))
        if trainer.is_global_zero and is_better(score, None if self.best is None else self.best.score):
            self.best = Best(trainer.current_epoch, trainer.global_step, score)
            self._write(trainer, {**asdict(self.best), **pl_module.result()})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a file that the disk has refused; end the run if its patience is over."""
        self._try_again(trainer)
        self._stop_if_patience_is_over(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print which epoch is the result."""
        self._try_again(trainer)
        if self.best is not None and self._unwritten is None:
            print(f"best.ckpt: {self.best}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write a file that the disk has refused, for the last time."""
        self._try_again(trainer)

    def _stop_if_patience_is_over(self, trainer: L.Trainer) -> None:
        num_epochs = 0 if self.best is None else self._validated_epoch - self.best.epoch
        if self._ranks.any(0 < self.patience <= num_epochs):
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"no better mAP50-95 for {num_epochs} epochs: the run ends (run.patience {self.patience})")

    def _write(self, trainer: L.Trainer, content: dict[str, Any]) -> None:
        checkpoint_io: Any = trainer.strategy.checkpoint_io
        checkpoint_io.save_checkpoint(content, self.path)
        if str(self.path) not in checkpoint_io.failures:
            self._unwritten = None
        elif self._unwritten is not content:
            state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in content["state_dict"].items()}
            self._unwritten = {**content, "state_dict": state}

    def _try_again(self, trainer: L.Trainer) -> None:
        if self._unwritten is not None:
            self._write(trainer, self._unwritten)
