"""``memory.csv``: one row per sample of a run's memory, with the column names of ``nvidia-smi --query-gpu``."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from data.replacing import replacing
from engine.memory.probe import MemorySample
from engine.memory.units import MIB, format_bytes

Phase = Literal["train", "validation"]
Columns = dict[str, list]
TIMESTAMP, TIME, STEP, PHASE = "timestamp", "time [s]", "step", "phase"
KINDS = ("allocated", "reserved", "peak", "used", "total")
ALLOCATED, RESERVED, PEAK, USED, TOTAL = MEMORY = tuple(f"memory.{kind} [MiB]" for kind in KINDS)
UTILIZATION, TEMPERATURE = "utilization.gpu [%]", "temperature.gpu"
SPEED, EVENT = "images_per_second", "event"
COLUMNS = (TIMESTAMP, TIME, STEP, PHASE, *MEMORY, UTILIZATION, TEMPERATURE, SPEED, EVENT)
TEXT_COLUMNS = (TIMESTAMP, PHASE, EVENT)
VALIDATION, RESUMED, SPILL = "validation", "resumed", "spill"
OOM_RECOVERY, OUT_OF_MEMORY = "oom recovery", "out of memory"
EVENT_SEPARATOR = "; "


class MemoryLog:
    """Appends rows to ``memory.csv``. The clock of a resumed run continues from its last row."""

    def __init__(self, path: Path, num_steps_behind: int = 0) -> None:
        """Open the file and keep the rows of the checkpoint that a run resumes from.

        Args:
            path: The file.
            num_steps_behind: Optimizer steps of that checkpoint. Rows of later steps are dropped.

        Raises:
            OSError: If the file cannot be opened.
        """
        earlier = [row for row in _whole_rows(path) if float(row[STEP]) <= num_steps_behind]
        self.num_earlier_rows = len(earlier)
        self._clock_start = time.monotonic() - (float(earlier[-1][TIME]) if earlier else 0.0)
        with replacing(path) as file:
            file.writelines(_line(row) for row in (COLUMNS, *(row.values() for row in earlier)))
        # No buffer, because closing a buffered file would write a row again that the disk has refused.
        self._file = path.open("ab", buffering=0)

    def write(
        self, step: int, phase: Phase, sample: MemorySample, images_per_second: float | None, events: list[str]
    ) -> None:
        """Append one row, with an empty cell for each value that is None.

        Raises:
            OSError: If the disk is full.
        """
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        seconds = time.monotonic() - self._clock_start
        memory = [getattr(sample, f"{kind}_bytes") for kind in KINDS]
        mib = ["" if num_bytes is None else f"{num_bytes / MIB:.1f}" for num_bytes in memory]
        speed = "" if images_per_second is None else f"{images_per_second:.1f}"
        device = (sample.utilization_percent, sample.temperature_c)  # csv writes None as an empty cell
        self._append((now, f"{seconds:.3f}", step, phase, *mib, *device, speed, EVENT_SEPARATOR.join(events)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, cells: tuple) -> None:
        row = _line(cells)
        if self._file.write(row) < len(row):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_memory_log(path: Path) -> Columns:
    """The columns of a ``memory.csv`` by name: texts for `TEXT_COLUMNS`, floats for the others, NaN for empty cells."""
    columns: Columns = {name: [] for name in COLUMNS}
    for row in _whole_rows(path):
        for name in COLUMNS:
            columns[name].append(row[name] if name in TEXT_COLUMNS else float(row[name] or math.nan))
    return columns


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """Every complete row as text, without a last row that was cut off when the run was killed."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get(EVENT) is not None]


def _line(cells: Iterable[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def has_event(columns: Columns, event: str) -> list[bool]:
    """Whether ``event`` is noted, for each row."""
    return [event in noted.split(EVENT_SEPARATOR) for noted in columns[EVENT]]


def is_gpu(columns: Columns) -> bool:
    """Whether the rows describe a GPU and not the RAM of the process."""
    return largest_bytes(columns[PEAK]) is not None


def phase_table(columns: Columns) -> list[str]:
    """The most memory that training and validation used, and that other programs held, as lines of a table.

    torch's peak never falls. The peak of a phase is therefore known if it rose in that phase. If it did not rise, the
    phase stayed below the peak of the other phase.
    """
    lines = [f"{'at most':12}{'allocated':>12}{'reserved':>12}{'used':>12}{'beside torch':>14}"]
    own_peaks: dict[str, float] = {}
    highest = 0.0
    for phase, peak in zip(columns[PHASE], columns[PEAK], strict=True):
        if peak > highest:
            own_peaks[phase] = highest = peak
    for phase in dict.fromkeys(columns[PHASE]):
        rows = [row for row, other in enumerate(columns[PHASE]) if other == phase]
        reserved, used = ([columns[name][row] for row in rows] for name in (RESERVED, USED))
        beside = [in_use - ours for in_use, ours in zip(used, reserved, strict=True)]
        sizes = [format_bytes(largest_bytes(values) or 0) for values in (reserved, used, beside)]
        allocated = format_bytes(round(own_peaks.get(phase, highest) * MIB))
        allocated = allocated if phase in own_peaks else f"< {allocated}"
        lines.append(f"{phase:12}{allocated:>12}{sizes[0]:>12}{sizes[1]:>12}{sizes[2]:>14}")
    return lines


def summary_line(columns: Columns, planned_bytes: int | None, context_bytes: int) -> str:
    """Predicted peak, measured peak and error, in one line.

    Args:
        columns: From `read_memory_log`.
        planned_bytes: The predicted peak including CUDA's context; None if there was no plan.
        context_bytes: Bytes that the process holds outside torch's allocator.
    """
    allocated, reserved, used = (largest_bytes(columns[name]) for name in (PEAK, RESERVED, USED))
    if allocated is None or reserved is None:
        return f"memory: the process held at most {format_bytes(used or 0)} of RAM"
    measured_bytes = reserved + context_bytes
    parts = f"{format_bytes(allocated)} allocated, {format_bytes(reserved)} reserved"
    line = f"measured peak {format_bytes(measured_bytes)} ({parts}, {format_bytes(context_bytes)} CUDA)"
    if planned_bytes is not None:
        error = planned_bytes / measured_bytes - 1
        line = f"predicted peak {format_bytes(planned_bytes)}, {line}, error {error:+.1%}"
    if num_recoveries := sum(has_event(columns, OOM_RECOVERY)):
        line += f", {num_recoveries} {'recovery' if num_recoveries == 1 else 'recoveries'} from out of memory"
    return f"memory: {line}"


def largest_bytes(mib: list[float]) -> int | None:
    """The largest value of a column that is in MiB, in bytes; None if the column is empty."""
    known = [value for value in mib if not math.isnan(value)]
    return round(max(known) * MIB) if known else None
