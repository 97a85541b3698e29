"""What the sections of docs/benchmarks.md share: result files, targets, plots, colors and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GIB = 2**30
LEVELS = ("none", "elementwise", "block")
SIDES = ("ultralytics", "yolofit")
COLORS = {
    "yolofit": "#0969da", "ultralytics": "#bc4c00", "none": "#0969da", "elementwise": "#1a7f37", "block": "#8250df",
}  # fmt: skip


@dataclass
class Result:
    """A result file."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the file without its date."""
        return re.sub(r"_\d{4}-\d\d-\d\d$", "", self.path.stem)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def source(self) -> str:
        """Markdown that names what was measured, when, on what, by which command, and the file."""
        about = self.content.get("machine")
        if not isinstance(about, dict):  # the oldest files have these keys beside the results
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
    """Collects the result files, plots and targets of the page."""

    folder: Path = RESULTS
    plots: dict[str, Figure] = field(default_factory=dict)
    targets: list[tuple[str, str, str, str]] = field(default_factory=list)
    used: set[Path] = field(default_factory=set)

    def newest(self, name: str) -> Result | None:
        """The newest result of that name: ``name.json`` or ``name_DATE.json``; None if there is none."""
        found = [result for result in self.results() if result.name == name]
        if not found:
            return None
        self.used.add(found[-1].path)
        return found[-1]

    def results(self) -> list[Result]:
        """All results, the newest of each name last."""
        paths = sorted(self.folder.glob("*.json"))
        return [Result(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def target(self, number: str, text: str, measured: str | None, share_met: float = 0) -> None:
        """Note a target, the measured value (None: not measured) and the share of cases that meet the target."""
        is_part = 0 < share_met < 1
        verdict = "not measured" if measured is None else "in part" if is_part else "met" if share_met else "**missed**"
        self.state(number, text, measured or "-", verdict)

    def state(self, number: str, text: str, measured: str, verdict: str) -> None:
        """Note a target, the measured value and the verdict."""
        self.targets.append((number, text, measured, verdict))

    def plot(self, name: str, draw: Callable[..., None], columns: int = 1) -> str:
        """Draw a picture with one or several axes; return the Markdown that shows it."""
        figure = Figure(figsize=(4.5 * columns, 3.2), layout="constrained")
        draw(*figure.subplots(1, columns, squeeze=False)[0])
        self.plots[f"{name}.svg"] = figure
        return f"![{name.replace('_', ' ')}](benchmarks/{name}.svg)"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], num_text: int = 1) -> str:
    """A Markdown table: the first ``num_text`` columns are aligned left, the others right."""
    marks = ["---"] * num_text + ["---:"] * (len(head) - num_text)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, marks, *rows])


def with_quartiles(value: float, quartiles: Sequence[float], form: str = ".3f") -> str:
    """A median with its quartiles in brackets."""
    return f"{value:{form}} ({quartiles[0]:{form}} to {quartiles[1]:{form}})"


def gib(num_bytes: float) -> str:
    """Bytes in the largest fitting unit of GiB, MiB and KiB."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"


def missing(what: str, program: str) -> str:
    """The text of a section without a result."""
    return f"Not measured yet: {what}. Run `{program}`."
