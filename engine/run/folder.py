"""The run folder: holds configuration, logs and checkpoints of one run, and protects them from other runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from engine.errors import ConfigError
from engine.run.best_checkpoint import BestCheckpoint, settle_best
from engine.run.last_checkpoint import LastCheckpoint
from engine.run.lock import lock_folder
from engine.run.logs import METRICS, EventFiles, MetricsCsv

CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"
LAST = "last.ckpt"


@dataclass(frozen=True)
class RunConfig:
    """The folder of a run, and its early end."""

    folder: Path = Path("runs/fit")
    """Receives everything the run writes. If it holds another run, ``-2``, ``-3``, ... is appended."""
    patience: int = 100
    """Epochs without a better mAP50-95 after which a validation ends training; 0 trains to the end."""
    checkpoint_minutes: float = 10.0
    """Minutes between writes of ``last.ckpt`` within an epoch; 0 writes it only at the end of every epoch."""


def prepare_run_folder(config: RunConfig, ckpt_path: Path | None, num_steps_behind: int = 0) -> Path:
    """Choose, make and lock the folder of a new run, or of one that resumes from its own checkpoint ``ckpt_path``.

    A run that resumes in another folder takes its best epoch and its metrics along. Of several processes, only the
    first one does this; the others learn the folder in their callbacks' ``setup``.

    Raises:
        ConfigError: If the folder cannot be made, or another run uses it.
    """
    folder = config.folder
    if rank_zero_only.rank:
        return folder
    own = None if ckpt_path is None else _own_folder(folder, ckpt_path)
    try:
        folder = own or next(one for one in numbered(folder, "run.folder") if _claim(one))
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.folder: {folder}: cannot be made ({error.strerror}): choose another") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"run.folder: {folder}: cannot be written to: choose another")
    lock_folder(folder)
    if ckpt_path is not None:
        _take_along(ckpt_path, folder, num_steps_behind)
    return folder


def _own_folder(folder: Path, ckpt_path: Path) -> Path | None:
    """Return the run folder of a checkpoint if it is the configured one, or a numbered one beside it."""
    mine = folder.resolve()
    for one in ckpt_path.resolve().parents:
        if one == mine:
            return folder
        if one.parent == mine.parent and re.fullmatch(rf"{re.escape(mine.name)}-\d+", one.name):
            return folder.with_name(one.name)
    return None


def numbered(folder: Path, key: str) -> Iterator[Path]:
    """Yield a folder, then ``folder-2``, ``folder-3``, ...; messages name the option ``key``.

    Raises:
        ConfigError: After the first one, if it has no name to append a number to, such as ``.`` and ``/``.
    """
    yield folder
    if folder.name in ("", ".."):
        raise ConfigError(f"{key}: {folder}: is not empty: choose another folder")
    for number in count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _take_along(ckpt_path: Path, folder: Path, num_steps_behind: int) -> None:
    """Copy best epoch and metrics into the folder of a resumed run."""
    source, best = ckpt_path.parent, folder / CHECKPOINTS / BEST
    try:
        settle_best(best, num_steps_behind, best if source.resolve() == best.parent.resolve() else source / BEST)
        metrics = source.parent / METRICS
        if source.name == CHECKPOINTS and metrics.is_file() and not (folder / METRICS).exists():
            shutil.copyfile(metrics, folder / METRICS)
    except OSError as error:
        message = f"run.folder: {folder}: cannot be written to ({error.strerror}): make room, or choose another"
        raise ConfigError(message) from error


def _claim(folder: Path) -> bool:
    """Whether a new run may use a folder: it was empty, and no other run that starts now has taken it."""
    if folder.exists() and any(folder.iterdir()):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / CHECKPOINTS).mkdir()  # only one of several runs succeeds
    except FileExistsError:
        return False
    return True


def default_loggers(folder: Path, num_steps_behind: int = 0) -> list[Logger]:
    """Return the loggers of ``metrics.csv`` in the run folder and of TensorBoard's files in a folder below it."""
    return [MetricsCsv(folder, num_steps_behind), EventFiles(folder, num_steps_behind)]


def default_callbacks(folder: Path, config: RunConfig) -> list[Callback]:
    """Return the callbacks for ``best.ckpt`` and patience, and for ``last.ckpt``."""
    checkpoints = folder / CHECKPOINTS
    return [
        BestCheckpoint(checkpoints / BEST, config.patience),
        LastCheckpoint(checkpoints / LAST, config.checkpoint_minutes),
    ]
