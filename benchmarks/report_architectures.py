"""Every architecture: the section of docs/benchmarks.md on the table of `architectures.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from report_parts import LEVELS, Report, gib, missing, table

NUMBER = "10"
EXACT, PLANNED = 1e-5, 1e-3
MOST_KEPT = {"elementwise": 0.42, "block": 0.25}
FAMILIES = ("yolov8l", "yolov9c", "yolo12l")
"""Of which it is promised what the levels keep."""
TEXTS = (
    "loss and gradient of every architecture within 1e-5 of those of Ultralytics' criterion",
    "every level: gradient within 1e-5 of `none`, running statistics equal",
    "plan within 0.1 % of the bytes of a real step on a CPU, every architecture and level",
    f"`elementwise` keeps at most 0.42 of `none`, `block` 0.25: {', '.join(FAMILIES)}",
)
HEAD = (
    "architecture", "parameters", "loss, gradient: error", "`elementwise`: gradient", "`block`: gradient",
    "kept, `none`", "`elementwise`", "`block`", "head in `block`", "plan: largest error",
)  # fmt: skip
NOTE = """Errors are relative. Loss and gradient: ours against the criterion of Ultralytics. Level: its gradient
against `none`, and whether the running statistics differ. Kept: bytes from forward to backward, 16 x 640 px in fp16, of
the levels as a part of those of `none`. Plan: the peak of the planned step against that of a real one, the worst of the
three levels."""


def architectures(report: Report) -> str:
    """The table, and which promises hold."""
    result = report.newest("architectures_cpu")
    if result is None:
        for text in TEXTS:
            report.target(NUMBER, text, None)
        return missing("the architectures", "python benchmarks/architectures.py")
    found = result["rows"]
    measured = [row for row in found if "refused" not in row]
    _note_targets(report, measured)
    lines = [_cells(row) if "refused" not in row else _refused(row) for row in found]
    failures = [f"- {row['network']}, {part}: {text}" for row in measured for part, text in row["errors"].items()]
    unfinished = f"{len(found)} of {result['num_wanted']} rows are there." if len(found) < result["num_wanted"] else ""
    parts = [result.source(), NOTE.replace("\n", " "), unfinished, table(HEAD, lines), "\n".join(failures)]
    return "\n\n".join(filter(None, parts))


def _note_targets(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    criteria = [_worst_of(row["criterion"], "loss_error", "gradient_error") for row in rows]
    levels = [_level_error(found) for row in rows for found in row["levels"].values()]
    plans = [_worst_of(found, "relative_error") for row in rows for found in row["plan"].values()]
    for text, errors, limit in zip(TEXTS, (criteria, levels, plans), (EXACT, EXACT, PLANNED), strict=False):
        num_met = sum(error is not None and error <= limit for error in errors)
        report.target(NUMBER, text, f"{num_met} of {len(errors)}", num_met / len(errors))
    shares = {
        (row["network"], level): _share(row, level) for row in rows if row["network"] in FAMILIES for level in MOST_KEPT
    }
    num_met = sum(share is not None and share <= MOST_KEPT[level] for (_, level), share in shares.items())
    texts = [f"{share:.2f}" if share is not None else "fails" for share in shares.values()]
    report.target(NUMBER, TEXTS[3], ", ".join(texts) or None, num_met / max(len(shares), 1))


def _worst_of(found: dict[str, Any] | None, *keys: str) -> float | None:
    return max(abs(found[key]) for key in keys) if found else None


def _level_error(found: dict[str, Any] | None) -> float | None:
    """None if the level fails or the statistics differ."""
    return found["gradient_error"] if found and found["statistics_equal"] else None


def _share(row: dict[str, Any], level: str) -> float | None:
    lean, none = row["kept"][level], row["kept"]["none"]
    return lean["bytes"] / none["bytes"] if lean and none else None


def _cells(row: dict[str, Any]) -> list[str]:
    criterion, none, block = row["criterion"], row["kept"]["none"], row["kept"]["block"]
    plans = [_worst_of(found, "relative_error") for found in row["plan"].values()]
    measured = [error for error in plans if error is not None]
    return [
        row["network"],
        f"{row['parameters'] / 1e6:.1f} M",
        f"{_short(criterion['loss_error'])}, {_short(criterion['gradient_error'])}" if criterion else "fails",
        *(_level_cell(row["levels"][level]) for level in LEVELS[1:]),
        gib(none["bytes"]) if none else "fails",
        *(f"{share:.2f}" if (share := _share(row, level)) is not None else "fails" for level in LEVELS[1:]),
        f"{block['head_share']:.0%}" if block else "fails",
        (f"{max(measured):.2%}" if measured else "fails") + ", one fails" * (0 < len(measured) < len(plans)),
    ]


def _level_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "fails"
    return _short(found["gradient_error"]) + ", **statistics differ**" * (not found["statistics_equal"])


def _refused(row: dict[str, Any]) -> list[str]:
    return [row["network"], f"refused: {row['refused'].partition(': ')[2]}", *[""] * (len(HEAD) - 2)]


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"
