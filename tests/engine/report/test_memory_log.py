from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from engine.memory.probe import MemorySample
from engine.memory.units import GIB, MIB
from engine.report.memory_log import (
    COLUMNS,
    EVENT,
    PEAK,
    STEP,
    TIME,
    USED,
    Columns,
    MemoryLog,
    has_event,
    is_gpu,
    phase_table,
    read_memory_log,
    summary_line,
)

NVIDIA_SMI_NAMES = {"timestamp", "memory.used [MiB]", "memory.total [MiB]", "utilization.gpu [%]", "temperature.gpu"}


def sample(peak_gib: float, reserved_gib: float = 11, used_gib: float = 12.5) -> MemorySample:
    return MemorySample(
        allocated_bytes=GIB,
        reserved_bytes=int(reserved_gib * GIB),
        peak_bytes=int(peak_gib * GIB),
        used_bytes=int(used_gib * GIB),
        total_bytes=16 * GIB,
        utilization_percent=97,
        temperature_c=66,
    )


def log_of(path: Path, *rows: tuple[str, MemorySample, list[str]], num_steps_behind: int = 0) -> Columns:
    log = MemoryLog(path, num_steps_behind)
    for step, (phase, at_that_time, events) in enumerate(rows, start=1):
        log.write(step, phase, at_that_time, 44.25, events)
    log.close()
    return read_memory_log(path)


def test_memory_log__has_the_columns_of_nvidia_smi(tmp_path: Path) -> None:
    log_of(tmp_path / "memory.csv", ("train", sample(10.5), []))
    (row,) = csv.DictReader((tmp_path / "memory.csv").open())
    assert NVIDIA_SMI_NAMES <= set(row) == set(COLUMNS)
    assert (row["memory.used [MiB]"], row["memory.total [MiB]"]) == ("12800.0", "16384.0")
    assert (row["utilization.gpu [%]"], row["temperature.gpu"]) == ("97", "66")
    assert row["images_per_second"] == "44.2"


def test_memory_log__keeps_what_is_not_known_empty(tmp_path: Path) -> None:
    columns = log_of(tmp_path / "memory.csv", ("train", MemorySample(used_bytes=GIB), []))
    assert columns[USED] == [1024]
    assert math.isnan(columns[PEAK][0])
    assert not is_gpu(columns)


@pytest.mark.parametrize("num_bytes_left", range(1, 90, 11))
def test_memory_log__goes_on_after_a_row_that_was_cut_off(tmp_path: Path, num_bytes_left: int) -> None:
    path = tmp_path / "memory.csv"
    log_of(path, ("train", sample(10.5), []))
    *complete, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(complete) + last + last[: min(num_bytes_left, len(last) - 3)])
    log = MemoryLog(path, num_steps_behind=1)
    assert log.num_earlier_rows == 1
    log.write(7, "train", sample(10.5), None, ["resumed"])
    log.close()
    assert read_memory_log(path)[STEP] == [1, 7]


def test_memory_log__begins_anew_where_not_even_the_head_was_written(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    path.write_text("timestamp,time [s],st")
    assert log_of(path, ("train", sample(10.5), []))[STEP] == [1]


def test_memory_log__goes_on_with_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    log_of(path, ("train", sample(10.5), []))
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[1] = "5000.000"
    path.write_text("\n".join([lines[0], ",".join(cells)]) + "\n")
    assert log_of(path, ("train", sample(10.5), []), num_steps_behind=1)[TIME][1] >= 5000


def test_memory_log__drops_what_comes_after_the_checkpoint_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    log_of(path, *[("train", sample(10.5), [])] * 5)
    columns = log_of(path, ("train", sample(11), ["resumed"]), num_steps_behind=3)
    assert columns[STEP] == [1, 2, 3, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["memory.csv"]


def test_memory_log__never_writes_a_refused_row_again(tmp_path: Path) -> None:
    log = MemoryLog(tmp_path / "memory.csv")
    assert isinstance(log._file, io.RawIOBase)
    log._file.close()
    log._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115  closed below
    with pytest.raises(OSError, match="No space left"):
        log.write(1, "train", sample(10.5), None, [])
    log.close()  # a buffered file would fail here once more


def test_has_event__tells_events_of_a_row_apart(tmp_path: Path) -> None:
    columns = log_of(
        tmp_path / "memory.csv", ("train", sample(10.5), ["oom recovery", "spill"]), ("train", sample(10.5), [])
    )
    assert columns[EVENT][0] == "oom recovery; spill"
    assert has_event(columns, "spill") == [True, False]
    assert has_event(columns, "oom") == [False, False]


def test_phase_table__shows_the_peak_of_each_phase_not_what_is_reserved(tmp_path: Path) -> None:
    """Reserved alone would show 11 GiB in both phases, and hide 1.5 GiB that is held beside torch."""
    columns = log_of(
        tmp_path / "memory.csv",
        ("train", sample(9.0), []),
        ("train", sample(9.5), ["validation"]),
        ("validation", sample(10.5), []),
        ("train", sample(10.5, used_gib=13), []),
    )
    assert phase_table(columns) == [
        "at most        allocated    reserved        used  beside torch",
        "train            9.5 GiB    11.0 GiB    13.0 GiB       2.0 GiB",
        "validation      10.5 GiB    11.0 GiB    12.5 GiB       1.5 GiB",
    ]


def test_phase_table__says_below_where_a_phase_did_not_raise_the_peak(tmp_path: Path) -> None:
    columns = log_of(tmp_path / "memory.csv", ("train", sample(10.5), []), ("validation", sample(10.5), []))
    assert "< 10.5 GiB" in phase_table(columns)[2]


@pytest.mark.parametrize(
    ("planned_gib", "error"), [(11.5, "predicted peak 11.5 GiB, "), (11.5, ", error +0.0%"), (10.35, ", error -10.0%")]
)
def test_summary_line__compares_plan_and_measurement(tmp_path: Path, planned_gib: float, error: str) -> None:
    columns = log_of(tmp_path / "memory.csv", ("train", sample(10.5), []))
    line = summary_line(columns, int(planned_gib * GIB), 512 * MIB)
    assert error in line
    assert "measured peak 11.5 GiB (10.5 GiB allocated, 11.0 GiB reserved, 512.0 MiB CUDA)" in line


def test_summary_line__owns_up_to_recoveries(tmp_path: Path) -> None:
    columns = log_of(tmp_path / "memory.csv", ("train", sample(10.5), ["oom recovery"]), ("train", sample(10.5), []))
    assert summary_line(columns, None, 0).endswith(", 1 recovery from out of memory")
