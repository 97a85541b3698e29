"""What the sections of docs/benchmarks.md share: words, colors and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

GIB = 2**30
LEVELS = ("none", "elementwise", "block")
SIDES = ("ultralytics", "yolofit")
COLOURS = {
    "yolofit": "#0969da", "ultralytics": "#bc4c00", "none": "#0969da", "elementwise": "#1a7f37", "block": "#8250df",
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], num_text: int = 1) -> str:
    """A Markdown table: the first columns to the left, the others to the right."""
    marks = ["---"] * num_text + ["---:"] * (len(head) - num_text)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, marks, *rows])


def with_quartiles(value: float, quartiles: Sequence[float], form: str = ".3f") -> str:
    """A median and, in brackets, its quartiles."""
    return f"{value:{form}} ({quartiles[0]:{form}} to {quartiles[1]:{form}})"


def gib(num_bytes: float) -> str:
    """Bytes in GiB, or in MiB or KiB where there are few."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"


def missing(what: str, program: str) -> str:
    """What a section says without a result."""
    return f"Not measured yet: {what}. `{program}` does."
