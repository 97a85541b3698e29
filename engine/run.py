"""The run folder: where a run's configuration, logs and checkpoints go, and which keeps a run from spoiling another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from engine.errors import ConfigError
from engine.folder_lock import lock_folder
from engine.resume import MidEpochCheckpoints
from engine.run_logs import EventFiles, MetricsCsv

MONITOR = "score"
"""What `engine.module.Detector` calls the number by which epochs are compared; more is better."""
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunConfig:
    """Where a run goes, and when it ends early."""

    folder: Path = Path("runs/fit")
    """Receives everything the run writes. If another run is in it, ``-2``, ``-3``, ... is appended."""
    patience: int = 100
    """Epochs without a better mAP50-95 after which training stops; 0 trains to the end."""
    checkpoint_minutes: float = 10.0
    """``last.ckpt`` is written at the end of every epoch and after so many minutes; 0 for the former only."""


def prepare_run_folder(config: RunConfig, ckpt_path: Path | None) -> Path:
    """Choose, make and lock the folder of a run that starts, or of one that is resumed from one of its own checkpoints.

    With several processes the first one does so; the others learn of it in their callbacks' ``setup``.

    Raises:
        ConfigError: If it cannot be made, or another run has it.
    """
    folder = config.folder
    if rank_zero_only.rank:
        return folder
    is_resumed = ckpt_path is not None and folder.resolve() in ckpt_path.resolve().parents
    try:
        number = 1
        while not is_resumed and not _claim(folder):
            if config.folder.name in ("", ".."):
                raise ConfigError(f"run.folder: {config.folder}: is not empty: choose another folder")
            number += 1
            folder = config.folder.with_name(f"{config.folder.name}-{number}")
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.folder: {folder}: cannot be made ({error.strerror}): choose another") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"run.folder: {folder}: cannot be written to: choose another")
    lock_folder(folder)
    return folder


def _claim(folder: Path) -> bool:
    """Whether a new run may have a folder: it was empty, and no other run that starts at this moment was faster."""
    if folder.exists() and any(folder.iterdir()):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / CHECKPOINTS).mkdir()  # one of several succeeds
    except FileExistsError:
        return False
    return True


def default_loggers(folder: Path, num_steps_behind: int = 0) -> list[Logger]:
    """``metrics.csv`` in the run folder, and TensorBoard's files in a folder of their own.

    Args:
        folder: The run folder.
        num_steps_behind: Optimizer steps that a resumed run has behind it.
    """
    return [MetricsCsv(folder, num_steps_behind), EventFiles(folder, num_steps_behind)]


def default_callbacks(folder: Path, config: RunConfig) -> list[Callback]:
    """``best.ckpt`` by mAP50-95, ``last.ckpt`` of the newest state, and the end of patience."""
    place: dict[str, Any] = {"dirpath": folder / CHECKPOINTS, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **place),
        ModelCheckpoint(filename="last", **place),
        MidEpochCheckpoints(folder / CHECKPOINTS / "last.ckpt", config.checkpoint_minutes),
    ]
    if config.patience > 0:
        patience = EarlyStopping(MONITOR, mode="max", patience=config.patience, check_finite=False, strict=False)
        callbacks.append(patience)
    return callbacks
