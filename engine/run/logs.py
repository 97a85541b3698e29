"""The logs in a run folder: ``metrics.csv`` and TensorBoard's files.

They survive what the run survives. A row is there before the checkpoint of its epoch; a run that goes on from an older
checkpoint takes back what was logged after it; and a disk that is full costs rows, not the run.
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
    """``metrics.csv``, a row per epoch: a file of a few kilobytes that is replaced as a whole for every row.

    So it is never half written, new columns are no problem, and a row that the disk refuses comes with the next one.
    """

    def __init__(self, folder: Path, num_steps_behind: int = 0) -> None:
        """Go on with the file that is there.

        Args:
            folder: The run folder.
            num_steps_behind: Optimizer steps that a resumed run has behind it; rows of later ones are dropped.
        """
        super().__init__()
        self._path = folder / METRICS
        self._first_step = num_steps_behind
        self._rows = [row for row in read_rows(self._path) if int(row[STEP]) < num_steps_behind]

    @property
    def name(self) -> str:
        """None is needed."""
        return ""

    @property
    def version(self) -> str:
        """None is needed."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row for a step, counted from 0, or to the row that it has already."""
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
    """The rows of a ``metrics.csv``; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class EventFiles(TensorBoardLogger):
    """TensorBoard's files; once the disk refuses them, the rest of the run is not in them."""

    def __init__(self, folder: Path, num_steps_behind: int = 0) -> None:
        """Write into ``folder / "tensorboard"``; TensorBoard shows nothing that was logged after these steps before."""
        super().__init__(folder, name="tensorboard", version="", purge_step=num_steps_behind or None)
        self._has_failed = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars; without Lightning's way, which hides what the disk says."""
        self._attempt(lambda: [self.experiment.add_scalar(name, float(x), step) for name, x in metrics.items()])

    @rank_zero_only
    def save(self) -> None:
        """Write what is waiting."""
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
            log.warning("%s: cannot be written (%s): TensorBoard gets no more", self.log_dir, error.strerror)
