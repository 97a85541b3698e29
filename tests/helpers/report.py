"""A ``metrics.csv`` as a run leaves it."""

from __future__ import annotations

from pathlib import Path

from engine.report.results_plots import PANELS


def write_history(path: Path, num_epochs: int, best: int = 3, **changed: float) -> None:
    """Write plausible columns; the epoch ``best``, counted from 1, has the best mAP50-95."""
    names = [name for panel in PANELS for name in panel.columns]
    rows = [",".join(["epoch", *names, *changed])]
    for epoch in range(num_epochs):
        score = 0.5 if epoch + 1 == best else 0.4 * (epoch + 1) / num_epochs
        values = [score if name.startswith("val/map") else 2 / (epoch + 1) for name in names]
        rows.append(",".join(str(value) for value in [epoch, *values, *changed.values()]))
    path.write_text("\n".join(rows) + "\n")
