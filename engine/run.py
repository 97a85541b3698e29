"""The run folder: where a run's configuration, logs and checkpoints go, and which keeps a run from spoiling another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from engine.errors import ConfigError

MONITOR = "val/map50_95"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunConfig:
    """Where a run goes, and when it ends early."""

    folder: Path = Path("runs/fit")
    """Receives everything the run writes. If another run is in it, ``-2``, ``-3``, ... is appended."""
    patience: int = 100
    """Epochs without a better mAP50-95 after which training stops; 0 trains to the end."""


def prepare_run_folder(config: RunConfig, ckpt_path: Path | None) -> Path:
    """Choose and make the folder of a run that starts, or of one that is resumed from one of its own checkpoints.

    Raises:
        ConfigError: If it cannot be made.
    """
    folder = config.folder
    is_resumed = ckpt_path is not None and folder.resolve() in ckpt_path.resolve().parents
    if not is_resumed:
        number = 1
        while folder.exists() and any(folder.iterdir()):
            number += 1
            folder = config.folder.with_name(f"{config.folder.name}-{number}")
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.folder: {folder}: cannot be made ({error.strerror}): choose another") from error
    return folder


def default_loggers(folder: Path) -> list[Logger]:
    """``metrics.csv`` in the run folder, and TensorBoard's files in a folder of their own."""
    return [CSVLogger(folder, name="", version=""), TensorBoardLogger(folder, name="tensorboard", version="")]


def default_callbacks(folder: Path, config: RunConfig) -> list[Callback]:
    """``best.ckpt`` by mAP50-95, ``last.ckpt`` of the newest epoch, and the end of patience."""
    place = {"dirpath": folder / CHECKPOINTS, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **place),
        ModelCheckpoint(filename="last", **place),
    ]
    if config.patience > 0:
        patience = EarlyStopping(MONITOR, mode="max", patience=config.patience, check_finite=False, strict=False)
        callbacks.append(patience)
    return callbacks
