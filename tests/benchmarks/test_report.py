"""The page of benchmarks says what the result files say, and result files say where they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import report
from report import PAGE, PLOTS, RESULTS, Report, page

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
    assert text.count("Not measured yet") >= len(report.report_sections.SECTIONS) - 1
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
    machine = {"date": "2026-01-01", "gpu": "a card", "torch": "2"}
    content = {"what": "steps", "command": "python benchmarks/gpu_steps.py", "machine": machine, "rows": rows}
    (tmp_path / "gpu_steps_2026-01-01.json").write_text(json.dumps(content))
    made = Report(tmp_path)
    text = page(made)
    assert [verdict for number, *_, verdict in made.targets if number == "1"][:3] == verdicts
    assert f"| {memory:.2f} | {100 * speed:.0f} " in text and "gpu_steps.svg" in made.plots


def gpu_row(rival: str, num_bytes: float, images_per_second: float) -> dict[str, Any]:
    seconds = 64 / images_per_second
    return {
        "image_size": 640, "micro_batch": 64, "precision": "fp16", "rival": rival, "median_seconds": seconds,
        "quartile_seconds": [seconds, seconds], "images_per_second": images_per_second,
        "peak_allocated_bytes": num_bytes, "reserved_bytes": num_bytes, "used_bytes": num_bytes,
    }  # fmt: skip
