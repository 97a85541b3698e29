"""``results.png``: losses and metrics of each epoch, from ``metrics.csv``."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from engine.report.style import GOOD, INK, PALETTE, log_scale, new_figure, tidy, title

History = dict[str, np.ndarray]
EPOCH = "epoch"
MONITOR = "val/map50_95"
BLUE, PURPLE, GREEN, YELLOW = PALETTE[:4]
MANY_EPOCHS = 40
"""With this many epochs or more, lines have no marks."""


@dataclass(frozen=True)
class Panel:
    """One chart of columns of ``metrics.csv``."""

    name: str
    about: str
    columns: dict[str, tuple[str, str]]
    """Label and color by column."""
    is_share: bool = False
    """Whether the values are between 0 and 1."""
    is_log: bool = False


def _loss(name: str, about: str) -> Panel:
    columns = {f"train/{name}_loss": ("training", BLUE), f"val/{name}_loss": ("validation", PURPLE)}
    return Panel(f"{name} loss", about, columns)


PANELS = (
    _loss("box", "where the boxes are"),
    _loss("cls", "which class they are"),
    _loss("dfl", "how exact their sides are"),
    Panel("learning rate", "at the last step of each epoch", {"train/lr": ("learning rate", YELLOW)}),
    Panel(
        "mAP",
        "mean over classes of COCO's average precision",
        {"val/map50": ("mAP50", BLUE), MONITOR: ("mAP50-95", PURPLE)},
        is_share=True,
    ),
    Panel(
        "precision and recall",
        "at the confidence with the best F1",
        {"val/precision": ("precision", BLUE), "val/recall": ("recall", PURPLE), "val/f1": ("F1", GREEN)},
        is_share=True,
    ),
    Panel(
        "mAP50-95 by size",
        "limits: 32 x 32 px and 96 x 96 px",
        {"val/map_small": ("small", BLUE), "val/map_medium": ("medium", PURPLE), "val/map_large": ("large", GREEN)},
        is_share=True,
    ),
    Panel("norm of the gradient", "epoch mean, before clipping", {"train/grad_norm": ("norm", YELLOW)}, is_log=True),
)


def read_history(path: Path) -> History:
    """The columns of a ``metrics.csv`` as floats, one row per epoch, NaN for empty cells.

    Raises:
        OSError: If there is no such file.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(EPOCH)]
    names = rows[0] if rows else {}
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names if name is not None}


def best_epoch(history: History) -> int | None:
    """The epoch with the best mAP50-95, counted from 1; None if no epoch was validated."""
    scores = history.get(MONITOR, np.empty(0))
    if not np.isfinite(scores).any():
        return None
    return int(history[EPOCH][np.nanargmax(scores)]) + 1


def shown_panels(history: History) -> list[Panel]:
    """The panels that have at least one value in the history."""
    return [panel for panel in PANELS if any(np.isfinite(history.get(name, [])).any() for name in panel.columns)]


def draw_results(history: History, path: Path) -> None:
    """Draw ``results.png``: all panels in two rows."""
    panels = shown_panels(history)
    num_columns = max(math.ceil(len(panels) / 2), 1)
    figure = new_figure(3.7 * num_columns, 6.4)
    grid = figure.subplots(2, num_columns, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        draw_panel(axes, panel, history)
    for axes in list(grid)[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path)


def draw_panel(axes: Axes, panel: Panel, history: History) -> None:
    """Draw one panel, with the best epoch marked."""
    epochs = history[EPOCH] + 1
    marker = "o" if len(epochs) < MANY_EPOCHS else None
    for name, (label, color) in panel.columns.items():
        if np.isfinite(history.get(name, [])).any():
            axes.plot(epochs, history[name], color=color, label=label, linewidth=1.6, marker=marker, markersize=3)
    best = best_epoch(history)
    if best is not None:
        axes.axvline(best, color=GOOD, linewidth=1, linestyle=":", zorder=0)
    title(axes, panel.name, panel.about)
    if panel.is_log:
        log_scale(axes)
    else:
        axes.set_ylim(0, _top(panel.columns, history) if panel.is_share else None)
        axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's default writes a power of ten over the title
    first, last = min(epochs[0], 1), max(epochs[-1], 2)
    margin = 0.02 * (last - first)
    axes.set_xlim(first - margin, last + margin)  # marks at the ends need room
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if len(axes.lines) - (best is not None) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    tidy(axes, "epoch" if best is None else f"epoch (dotted: best, {best})")


def _top(columns: Iterable[str], history: History) -> float:
    """Upper end of the axis for shares: somewhat above the largest value."""
    values = np.concatenate([history[name] for name in columns if name in history])
    return max(min(1.0, 1.15 * float(np.nanmax(values))), 0.05)


def _number(text: str | None) -> float:
    return float(text) if text else math.nan
