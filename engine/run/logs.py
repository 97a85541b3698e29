"""The logs of a run folder: ``metrics.csv`` and TensorBoard's files.

A row is written before the checkpoint of its epoch. A run that resumes from an older checkpoint removes what was logged
after it. A full disk costs rows, not the run.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from data.replacing import replacing

log = logging.getLogger(__name__)
METRICS = "metrics.csv"
STEP = "step"


class MetricsCsv(Logger):
    """``metrics.csv``, one row per epoch: a few kilobytes, replaced as a whole for every row.

    So it is never half written, it can get new columns, and a row that the disk has refused comes with the next one.
    """

    def __init__(self, folder: Path, num_steps_behind: int = 0) -> None:
        """Continue the file if it exists, without rows of steps from ``num_steps_behind`` on."""
        super().__init__()
        self._path = folder / METRICS
        self._first_step = num_steps_behind
        self._rows = [row for row in read_rows(self._path) if int(row[STEP]) < num_steps_behind]

    @property
    def name(self) -> str:
        """Empty: the logger needs no name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the logger needs no version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row for a step, counted from 0, or add to the row of that step."""
        row = {name: str(float(value)) for name, value in metrics.items()} | {STEP: str(step)}
        if "epoch" in row:
            row["epoch"] = str(int(metrics["epoch"]))
            self._rows = [old for old in self._rows if not self._is_resumed(old, row["epoch"])]
        if self._rows and self._rows[-1][STEP] == row[STEP]:
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        try:
            self._write()
        except OSError as error:
            log.warning("%s: cannot be written (%s): the next row tries again", self._path, error.strerror)

    def _is_resumed(self, row: dict[str, str], epoch: str) -> bool:
        """Whether a row is of the part of an epoch before the resume; the row of the whole epoch replaces it."""
        return row.get("epoch") == epoch and int(row[STEP]) < self._first_step

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, sorted(set().union(*self._rows)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        with replacing(self._path) as file:
            file.write(text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a ``metrics.csv``; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class EventFiles(TensorBoardLogger):
    """TensorBoard's files; once the disk has refused them, no more is written."""

    def __init__(self, folder: Path, num_steps_behind: int = 0) -> None:
        """Write into ``folder / "tensorboard"``; TensorBoard hides older values of steps after ``num_steps_behind``."""
        super().__init__(folder, name="tensorboard", version="", purge_step=num_steps_behind or None)
        self._has_failed = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars; Lightning's own method would hide the error of the disk."""
        self._attempt(lambda: [self.experiment.add_scalar(name, float(x), step) for name, x in metrics.items()])

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        self._attempt(lambda: TensorBoardLogger.save(self))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files."""
        self._attempt(lambda: TensorBoardLogger.finalize(self, status))

    def _attempt(self, write: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            write()
        except OSError as error:
            self._has_failed = True
            log.warning("%s: cannot be written (%s): TensorBoard receives no more values", self.log_dir, error.strerror)
