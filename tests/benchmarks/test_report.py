"""The page of benchmarks says what the result files say, and result files say where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_sections
from report import PAGE, PLOTS, page
from report_parts import RESULTS, Report

ABOUT = {"date", "commit", "cpu", "cpu_cores", "system", "python", "torch", "lightning", "ultralytics"}
OLDER = "2026-11-24"
"""Until then programs noted less."""
FILES = sorted(RESULTS.glob("*.json"))


@pytest.fixture(scope="module")
def written() -> tuple[Report, str]:
    made = Report()
    return made, page(made)


def test_page__is_up_to_date(written: tuple[Report, str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == written[1], "run: python benchmarks/report.py"


def test_plots__are_those_of_the_page(written: tuple[Report, str]) -> None:
    assert {path.name for path in PLOTS.iterdir()} == set(written[0].plots)


def test_every_result__is_on_the_page(written: tuple[Report, str]) -> None:
    assert not [path.name for path in FILES if f"[{path.name}]" not in written[1]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_result__says_where_it_comes_from(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if OLDER in path.name:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
        return
    assert content["what"] and content["command"].startswith(("python benchmarks/", "python -m engine.", "a script"))
    assert set(content["machine"]) >= ABOUT
    assert "/work" not in content["command"] and "/tmp" not in content["command"]


def test_page__without_results_claims_nothing(tmp_path: Path) -> None:
    empty = Report(tmp_path)
    text = page(empty)
    assert text.count("Not measured yet") >= len(report_sections.SECTIONS) - 1
    assert empty.targets and {verdict for *_, verdict in empty.targets} == {"not measured"}
    assert not empty.plots


def test_newest__is_the_latest_of_that_very_name(tmp_path: Path) -> None:
    for name in ("steps_2026-01-02", "steps_2026-01-10", "steps_more_2026-02-01"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert Report(tmp_path).newest("steps").path.name == "steps_2026-01-10.json"
    assert Report(tmp_path).newest("step") is None


@pytest.mark.parametrize(("memory", "speed", "verdicts"), [
    (0.40, 1.3, ["met", "met", "met"]),
    (0.40, 0.9, ["**missed**", "**missed**", "met"]),
    (1.10, 1.5, ["**missed**", "**missed**", "**missed**"]),
])  # fmt: skip
def test_gpu_targets__follow_memory_and_speed(tmp_path: Path, memory: float, speed: float, verdicts: list[str]) -> None:
    rows = [gpu_row("ultralytics", 36e9, 100.0), gpu_row("elementwise", 36e9 * memory, 100.0 * speed)]
    leave(tmp_path, "gpu_steps", {"rows": rows})
    made = Report(tmp_path)
    text = page(made)
    assert [verdict for number, *_, verdict in made.targets if number == "1"][:3] == verdicts
    assert f"| {memory:.2f} | {100 * speed:.0f} " in text and "gpu_steps.svg" in made.plots


def leave(folder: Path, name: str, content: dict[str, Any]) -> None:
    about = {"what": name, "command": "python benchmarks/x.py", "machine": {"date": "2026-01-01", "gpu": "a card"}}
    (folder / f"{name}_2026-01-01.json").write_text(json.dumps(about | content))


def gpu_row(
    rival: str, num_bytes: float, images_per_second: float, precision: str = "fp16", first_steps_seconds: float = 1.0
) -> dict[str, Any]:
    seconds = 64 / images_per_second
    return {
        "image_size": 640, "micro_batch": 64, "precision": precision, "rival": rival,
        "first_steps_seconds": first_steps_seconds, "median_seconds": seconds,
        "quartile_seconds": [seconds, seconds], "images_per_second": images_per_second,
        "peak_allocated_bytes": num_bytes, "reserved_bytes": num_bytes, "used_bytes": num_bytes,
    }  # fmt: skip


def test_precisions__are_compared_with_fp32(tmp_path: Path) -> None:
    rows = [gpu_row("none", 18e9, 200.0), gpu_row("none", 36e9, 100.0, "fp32"), gpu_row("block", 9e9, 90.0)]
    leave(tmp_path, "gpu_precision", {"rows": rows})
    assert "| 64 x 640, `none` | fp16 | 16.76 GiB | 200 | 0.50 | 2.00 |" in page(Report(tmp_path))


def test_compiled__is_compared_with_ultralytics_as_it_is(tmp_path: Path) -> None:
    rows = [gpu_row("ultralytics", 20e9, 100.0), gpu_row("ultralytics compiled", 15e9, 150.0, first_steps_seconds=80)]
    leave(tmp_path, "gpu_compiled", {"rows": rows})
    assert "| 64 x 640 | ultralytics compiled | 80.0 | 13.97 GiB | 150 | 0.75 | 1.50 |" in page(Report(tmp_path))


def test_cards__say_what_was_tried_and_what_was_planned(tmp_path: Path) -> None:
    row = {"image_size": 640, "card_gib": 16, "rival": "block", "micro_batch": 70, "planned_micro_batch": 66}
    other = row | {"rival": "none", "micro_batch": 20, "planned_micro_batch": 21}
    rows = [each | {"planned_without_margin": 72} for each in (row, other)]
    leave(tmp_path, "gpu_caps", {"rows": rows, "failed": {"elementwise at 640": "why"}})
    made = Report(tmp_path)
    assert "| 16 GiB, 640 px | - | 20 (21, 72) | - | 70 (66, 72) |" in page(made)
    assert [row[2:] for row in made.targets if "card of 16" in row[1]] == [("up to 70", "met")]
    assert [row[2:] for row in made.targets if "does not train" in row[1]] == [("1 of 2", "in part")]


def test_autobatch__errs_by_what_it_expects(tmp_path: Path) -> None:
    row = {"card_gib": 8, "fraction": 0.6, "batch": 7, "aim_bytes": 5e9, "expected_bytes": 4e9, "planned_bytes": 5e9}
    row |= {"ultralytics": {"peak_reserved_bytes": 5e9}, "none": {"peak_reserved_bytes": 4.9e9}, "fits_card": True}
    leave(tmp_path, "gpu_autobatch", {"rows": [row]})
    made = Report(tmp_path)
    assert "| -20.0% | yes |" in page(made)
    assert ("worst 2.0%, AutoBatch 20.0%", "met") in [target[2:] for target in made.targets]


def test_engine_on_gpu__is_compared_with_the_step(tmp_path: Path) -> None:
    seconds = {"engine": 0.102, "bare": 0.2, "step": 0.1}
    ratios = {name: value / 0.2 for name, value in seconds.items()}
    leave(tmp_path, "gpu_overhead", {"median_seconds": seconds, "median_ratio_to_bare": ratios})
    part = {"gflop": 10.0, "least_gb": 1.0, "floor_seconds": 0.01, "seconds": 0.02, "ratio": 2.0}
    step = {"floor_seconds": 0.01, "seconds": 0.03, "ratio": 3.0}
    ceilings = {"gemm_gflop_per_second": 7e5, "copy_gb_per_second": 4000.0}
    leave(tmp_path, "gpu_roofline", {"parts": {"convolutions": part}, "step": step, "ceilings": ceilings})
    made = Report(tmp_path)
    assert "| convolutions | 10 | 1.00 | 10.00 | 20.00 | 2.0 |" in page(made)
    assert ("2.0%", "met") in [target[2:] for target in made.targets]


def test_fidelity__of_runs_broken_off_compares_the_last_common_epoch(tmp_path: Path) -> None:
    runs = [
        {"trainer": trainer, "data": "boards", "seed": 0, "curves": {"val_map50_95": maps, "box_loss": [3.0, 2.0]}}
        for trainer, maps in (("yolofit", [None, 0.2, None, 0.3]), ("ultralytics", [None, 0.1, None]))
    ]
    leave(tmp_path, "gpu_fidelity", {"runs": [], "failed": {}, "unfinished": runs})
    made = Report(tmp_path)
    assert "| boards | 0 | 2 | 0.1000 | 0.2000 |" in page(made) and "gpu_fidelity_boards.svg" in made.plots
