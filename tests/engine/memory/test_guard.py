from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.memory.guard import SpillGuard, SpillReport
from engine.memory.probe import MemorySample
from engine.memory.units import GIB, MIB

TOTAL = 16 * GIB
FITS = MemorySample(reserved_bytes=11 * GIB, used_bytes=12 * GIB, total_bytes=TOTAL)
FULL = MemorySample(reserved_bytes=int(14.6 * GIB), used_bytes=int(15.6 * GIB), total_bytes=TOTAL)
SPILLING = MemorySample(reserved_bytes=int(15.9 * GIB), used_bytes=int(15.8 * GIB), total_bytes=TOTAL)
USUAL_SECONDS = 0.32
STEPS_IN_A_ROW = 5  # docs/memory.md promises a report within five steps

Step = tuple[MemorySample, float, float]  # sample, busy seconds, seconds of waiting


def steps(sample: MemorySample, count: int, factor: float = 1.0, waited: float = 0.01, seed: int = 0) -> list[Step]:
    """Steps of the usual length times a factor, with 10 % noise."""
    noise = random.Random(seed)
    return [(sample, USUAL_SECONDS * factor * noise.uniform(0.95, 1.05), waited) for _ in range(count)]


def replay(trace: Iterable[Step]) -> dict[int, SpillReport]:
    """Reports by the number of the step that caused them."""
    guard = SpillGuard()
    reports = {number: guard.observe(*step) for number, step in enumerate(trace, start=1)}
    return {number: report for number, report in reports.items() if report is not None}


def test_observe__reports_a_spill_once_within_five_steps() -> None:
    reports = replay(steps(FITS, 40) + steps(SPILLING, 60, factor=8))
    assert list(reports) == [40 + STEPS_IN_A_ROW]
    report = reports[45]
    # Beside torch, 1 GiB was in use while memory was free; torch needs 15.9 of 16 GiB.
    assert report.beyond_bytes == pytest.approx(0.9 * GIB, abs=MIB)
    assert report.slowdown == pytest.approx(8, rel=0.1)  # the noise of the trace
    assert (report.used_bytes, report.total_bytes) == (SPILLING.used_bytes, TOTAL)


def test_observe__knows_when_other_programs_are_the_cause() -> None:
    pushed_out = MemorySample(reserved_bytes=11 * GIB, used_bytes=int(15.8 * GIB), total_bytes=TOTAL)
    (report,) = replay(steps(FITS, 40) + steps(pushed_out, 10, factor=8)).values()
    assert report.beyond_bytes == 0


def test_observe__needs_no_comparison_when_torch_holds_more_than_the_card() -> None:
    over = MemorySample(reserved_bytes=18 * GIB, used_bytes=int(15.8 * GIB), total_bytes=TOTAL)
    ((number, report),) = replay(steps(over, 30, factor=10)).items()
    assert number == STEPS_IN_A_ROW
    assert (report.beyond_bytes, report.slowdown) == (2 * GIB, None)


def test_observe__reports_a_new_spill_after_memory_was_free() -> None:
    trace = steps(FITS, 20) + steps(SPILLING, 20, 8) + steps(FITS, 20) + steps(SPILLING, 20, 8)
    assert list(replay(trace)) == [25, 65]


def test_observe__reports_once_though_the_slowness_pauses() -> None:
    trace = steps(FITS, 20)
    for _ in range(6):
        trace += steps(SPILLING, 8, 8) + steps(SPILLING, 3)
    assert len(replay(trace)) == 1


def test_rearm__reports_again_if_the_remedy_did_not_help() -> None:
    guard = SpillGuard()
    for step in steps(FITS, 20) + steps(SPILLING, STEPS_IN_A_ROW, 8):
        report = guard.observe(*step)
    assert report is not None
    guard.rearm()
    reports = [guard.observe(*step) for step in steps(SPILLING, STEPS_IN_A_ROW, 8)]
    assert [report is not None for report in reports] == [False] * (STEPS_IN_A_ROW - 1) + [True]


QUIET_TRACES = {
    "a full card at full speed": steps(FULL, 100),
    "slow steps with memory to spare": steps(FITS, 40) + steps(FITS, 40, factor=8),
    "a loader that becomes slow": steps(FULL, 40) + steps(FULL, 40, waited=5.0),
    # The busy time covers only the launches: the device catches up while the step waits.
    "a slow loader that becomes fast": steps(FULL, 40, factor=0.2, waited=2.0) + steps(FULL, 40),
    "slow first steps": steps(FULL, 3, factor=30) + steps(FULL, 60),
    "single slow steps after validations and checkpoints": [
        step for _ in range(10) for step in steps(FULL, 1, factor=20) + steps(FULL, 20)
    ],
    "four slow steps": steps(FULL, 40) + steps(FULL, STEPS_IN_A_ROW - 1, factor=8) + steps(FULL, 40),
    "twice as slow, as when crowded images come together": steps(FULL, 40) + steps(FULL, 40, factor=2),
    "first steps that are fast, before the device is busy": steps(FULL, 3, factor=0.1) + steps(FULL, 12),
    "a CPU": [(MemorySample(used_bytes=15 * GIB, total_bytes=TOTAL), *step[1:]) for step in steps(FULL, 40, 8)],
    "no driver": [(MemorySample(reserved_bytes=15 * GIB), *step[1:]) for step in steps(FULL, 40) + steps(FULL, 9, 8)],
}


@pytest.mark.parametrize("trace", QUIET_TRACES.values(), ids=QUIET_TRACES.keys())
def test_observe__stays_quiet(trace: list[Step]) -> None:
    assert replay(trace) == {}


@settings(deadline=None, max_examples=40)
@given(
    seconds=st.floats(min_value=0.01, max_value=20),
    factor=st.floats(min_value=3.0, max_value=50),
    num_fast=st.integers(min_value=10, max_value=300),
    seed=st.integers(min_value=0, max_value=1000),
)
def test_observe__finds_every_spill_at_every_speed(seconds: float, factor: float, num_fast: int, seed: int) -> None:
    trace = steps(FITS, num_fast, seed=seed) + steps(SPILLING, 2 * STEPS_IN_A_ROW, factor=factor, seed=seed)
    scale = seconds / USUAL_SECONDS
    reports = replay((sample, busy * scale, 0.0) for sample, busy, _ in trace)
    assert list(reports) == [num_fast + STEPS_IN_A_ROW]


def test_sentence__says_what_it_costs_and_what_to_change() -> None:
    report = SpillReport(int(15.8 * GIB), TOTAL, beyond_bytes=2 * GIB, slowdown=8.04)
    assert report.sentence(micro_batch_size=32) == (
        "VRAM is spilling into system RAM (15.8 GiB of 16.0 GiB in use, this run needs about 2.0 GiB more than the "
        "card has) and a step takes 8.0 times as long as before. Lower data.micro_batch_size from 32 to 16 (the "
        "effective batch stays), raise model.recompute, or close other programs on the GPU."
    )


def test_sentence__fits_the_cause() -> None:
    sentence = SpillReport(int(15.8 * GIB), TOTAL, beyond_bytes=0, slowdown=None).sentence(micro_batch_size=1)
    assert "other programs have taken memory" in sentence
    assert "times slower than necessary. Raise model.recompute, or close" in sentence
    assert "micro_batch_size" not in sentence
