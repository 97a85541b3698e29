"""Writes docs/benchmarks.md and its plots from benchmarks/results/*.json: `python benchmarks/report.py`.

The sections are functions in `report_sections.py`; this is the frame. A test holds the page up to date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import report_sections
from matplotlib.figure import Figure
from report_parts import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
HEAD = """# Benchmarks

Generated from `benchmarks/results/` by `python benchmarks/report.py`; do not edit. Every figure comes from a file
there, which also says on what hardware, with what versions and by which command it was made. yolofit and its rival run
in one process, in turns; figures are medians, and what stands in brackets behind one is its middle half (first to third
quartile) unless a column says otherwise.
"""


@dataclass
class Result:
    """A result file."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the file, without its date."""
        return re.sub(r"_\d{4}-\d\d-\d\d$", "", self.path.stem)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def source(self) -> str:
        """What was measured, when, on what, by which command, and the file."""
        about = self.content.get("machine")
        if not isinstance(about, dict):  # before `common.machine`, what there was stood beside the results
            about = self.content
        hardware = about.get("gpu") or (f"{about['cpu']}, {about['cpu_cores']} cores" if "cpu_cores" in about else "")
        names = ("torch", "ultralytics", "lightning", "driver", "commit")
        versions = ", ".join(f"{name} {about[name]}" for name in names if about.get(name))
        words = "; ".join(word for word in (about["date"], hardware, versions) if word)
        command = f" `{self.content['command']}`" if "command" in self.content else ""
        what = self.content.get("what", self.name.replace("_", " ")).rstrip(". ")
        return f"*{what}.* {words}.{command} [{self.path.name}](../benchmarks/results/{self.path.name})"


@dataclass
class Report:
    """What the page is made of."""

    folder: Path = RESULTS
    plots: dict[str, Figure] = field(default_factory=dict)
    targets: list[tuple[str, str, str, str]] = field(default_factory=list)
    used: set[Path] = field(default_factory=set)

    def newest(self, name: str) -> Result | None:
        """The newest result of that name: ``name.json``, or with a date behind it."""
        found = [result for result in self.results() if result.name == name]
        if not found:
            return None
        self.used.add(found[-1].path)
        return found[-1]

    def results(self) -> list[Result]:
        """All there are, the newest of each name last."""
        paths = sorted(self.folder.glob("*.json"))
        return [Result(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def target(self, number: str, text: str, measured: str | None, share_met: float = 0) -> None:
        """Note a target, what was measured (None for nothing), and in which share of the cases it is met."""
        is_part = 0 < share_met < 1
        verdict = "not measured" if measured is None else "in part" if is_part else "met" if share_met else "**missed**"
        self.state(number, text, measured or "-", verdict)

    def state(self, number: str, text: str, measured: str, verdict: str) -> None:
        """Note a target and a verdict in words."""
        self.targets.append((number, text, measured, verdict))

    def plot(self, name: str, draw: Callable[..., None], columns: int = 1) -> str:
        """Draw a picture of one or several axes; the Markdown that shows it."""
        figure = Figure(figsize=(4.5 * columns, 3.2), layout="constrained")
        draw(*figure.subplots(1, columns, squeeze=False)[0])
        self.plots[f"{name}.svg"] = figure
        return f"![{name.replace('_', ' ')}](benchmarks/{name}.svg)"


def page(report: Report) -> str:
    """The whole page; afterwards ``report`` holds the plots."""
    sections = {title: section(report) for title, section in report_sections.SECTIONS.items()}
    others = [f"- {result.source()}" for result in report.results() if result.path not in report.used]
    sections["Other results"] = "\n".join(others)
    targets = table(("", "target", "measured", ""), sorted(report.targets, key=lambda row: int(row[0])), num_text=4)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{HEAD}\n## Targets\n\n{targets}\n\n{body}\n"


def main() -> None:
    report = Report()
    PAGE.write_text(page(report), encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    # Same results, same files: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": "yolofit", "svg.fonttype": "none"}):
        for name, figure in report.plots.items():
            figure.savefig(PLOTS / name, metadata={"Date": None})
    print(f"written: {PAGE.relative_to(ROOT)}, {len(report.plots)} plots")


if __name__ == "__main__":
    main()
