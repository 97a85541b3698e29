from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from engine.memory.units import GIB, MIB
from engine.report import memory_plots
from engine.report.memory_log import COLUMNS, EVENT, MEMORY, PHASE, SPEED, STEP, TIME, USED, Columns
from engine.report.memory_plots import MAX_POINTS, draw_breakdown, draw_timeline


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (savefig(self, path), drawn.append(self)))
    return drawn


def run_of(num_rows: int, **changed: list) -> Columns:
    columns = {name: [0.0] * num_rows for name in COLUMNS}
    columns |= {name: [1024.0 * (8 + index)] * num_rows for index, name in enumerate(MEMORY)}
    columns |= {PHASE: ["train"] * num_rows, EVENT: [""] * num_rows, SPEED: [40.0] * num_rows}
    seconds = [float(row) for row in range(num_rows)]
    return columns | {TIME: seconds, STEP: seconds} | changed


def labels_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_draw_timeline__shows_limits_phases_and_events(tmp_path: Path, figures: list[Figure]) -> None:
    events = ["", "oom recovery", "validation", "", "oom recovery; spill", "", "", "", "", ""]
    phases = ["train"] * 3 + ["validation"] * 2 + ["train"] * 5
    columns = run_of(10, **{EVENT: events, PHASE: phases})
    draw_timeline(columns, tmp_path / "memory.png", budget_bytes=11 * GIB, planned_peak_bytes=10 * GIB)
    labels = labels_of(figures[0])
    wanted = {
        "memory of the device: 12.0 GiB",
        "budget: 11.0 GiB",
        "planned peak, CUDA included: 10.0 GiB",
        "validation",
        "recovery from out of memory (2)",
        "spill into system RAM (1)",
    }
    assert wanted <= set(labels)
    memory = figures[0].axes[0]
    heights = {line.get_ydata()[0] for line in memory.get_lines() if line.get_label().startswith(("budget", "planned"))}
    assert heights == {10.0, 11.0}
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_draw_timeline__of_a_process_shows_no_line_of_a_gpu(tmp_path: Path, figures: list[Figure]) -> None:
    nothing = [float("nan")] * 5
    columns = run_of(5, **(dict.fromkeys(MEMORY, nothing) | {USED: [900.0] * 5}))
    draw_timeline(columns, tmp_path / "memory.png", budget_bytes=14 * GIB, planned_peak_bytes=12 * GIB)
    assert labels_of(figures[0]) == ["RAM of the process, without its loader's workers"]


def test_draw_timeline__keeps_the_highest_points_of_a_long_run(tmp_path: Path, figures: list[Figure]) -> None:
    used = [1024.0] * 100_000
    used[54_321] = 15 * 1024.0
    draw_timeline(run_of(100_000, **{USED: used}), tmp_path / "memory.png")
    line = next(line for line in figures[0].axes[0].get_lines() if line.get_label().startswith("used"))
    assert len(line.get_ydata()) == MAX_POINTS
    assert np.max(line.get_ydata()) == 15


def test_draw_timeline__of_a_run_that_ended_at_once(tmp_path: Path, figures: list[Figure]) -> None:
    draw_timeline(run_of(1), tmp_path / "memory.png")
    assert len(figures) == 1


@pytest.mark.parametrize(
    ("budget_gib", "verdict"), [(4, " of a budget of 4.0 GiB (1.0 GiB left)"), (2, "(1.0 GiB too much)")]
)
def test_draw_breakdown__adds_up_and_says_what_is_left(
    tmp_path: Path, figures: list[Figure], budget_gib: int, verdict: str
) -> None:
    components = {"weights": 512 * MIB, "activations": 2 * GIB + 512 * MIB, "autocast copies": 0}
    draw_breakdown(components, tmp_path / "memory_breakdown.png", budget_gib * GIB)
    assert labels_of(figures[0]) == ["activations: 2.5 GiB (83.3%)", "weights: 512.0 MiB (16.7%)"]
    axes = figures[0].axes[0]
    assert verdict in axes.get_title(loc="left")
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(3.0)


def test_colors__suffice_for_every_component_of_a_plan() -> None:
    assert len(set(memory_plots.PALETTE)) == len(memory_plots.PALETTE) >= 14
