"""Precision, recall and F1 against confidence, precision against recall, and the confusion matrices, as pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from engine.report.style import BAD, INK, MUTED, SHADE, chart_color, legend_below, new_figure, short_names, tidy, title
from engine.validation.metrics import COCO_RECALLS, CONFIDENCES, CONFUSION_CONFIDENCE, CONFUSION_IOU, DetectionResults

MAX_NAMED_CLASSES = 16
"""If there are more classes, their curves are thin gray lines without names."""
MAX_WRITTEN_CELLS = 32
"""If there are more classes, the cells of a confusion matrix hold no numbers."""
MEAN_LINE: dict[str, Any] = {"color": INK, "linewidth": 2.5, "zorder": 3}
"""The mean is drawn first, so that it comes first in the legend, but above the lines of the classes."""


def curve_pictures(results: DetectionResults) -> dict[str, Callable[[Path], None]]:
    """Functions that draw each picture, by file name. Without true boxes there are only the two matrices."""
    pictures: dict[str, Callable[[Path], None]] = {}
    if results.num_truth_C.any():
        pictures["PR_curve.png"] = partial(_draw_pr, results)
        against_confidence = {
            "F1": ("F1", results.f1_curve),
            "P": ("precision", results.precision_curve),
            "R": ("recall", results.recall_curve),
        }
        for letter, (name, curve) in against_confidence.items():
            pictures[f"{letter}_curve.png"] = partial(_draw_against_confidence, results, name, curve)
    pictures["confusion_matrix.png"] = partial(_draw_matrix, results, False)
    pictures["confusion_matrix_normalized.png"] = partial(_draw_matrix, results, True)
    return pictures


def _draw_pr(results: DetectionResults, path: Path) -> None:
    axes = new_figure(6.2, 4.6).subplots()
    mean = np.nanmean(results.pr_curve, axis=0)
    axes.plot(COCO_RECALLS, mean, label=f"all classes: mAP50 {results.map50:.3f}", **MEAN_LINE)
    _draw_classes(axes, results, COCO_RECALLS, results.pr_curve, results.ap50_C)
    title(axes, "Precision against recall", "a detection is right from IoU 0.5; the legend shows AP50")
    _save(axes, "recall", "precision", path)


def _draw_against_confidence(results: DetectionResults, name: str, curve: NDArray, path: Path) -> None:
    axes = new_figure(6.2, 4.6).subplots()
    mean = np.nanmean(curve[results.num_truth_C > 0], axis=0)
    mean_at_best = float(np.interp(results.confidence, CONFIDENCES, mean))
    axes.plot(CONFIDENCES, mean, label=f"all classes: {mean_at_best:.3f}", **MEAN_LINE)
    axes.axvline(results.confidence, color=BAD, linewidth=1, linestyle=":", label="best mean F1", zorder=3)
    _draw_classes(axes, results, CONFIDENCES, curve, curve[:, np.searchsorted(CONFIDENCES, results.confidence)])
    about = f"the best mean F1 is at confidence {results.confidence:.3f}; the legend shows {name} there"
    title(axes, f"{name[0].upper()}{name[1:]} against confidence", about)
    _save(axes, "confidence", name, path)


def _draw_classes(axes: Axes, results: DetectionResults, x: NDArray, curve: NDArray, value_C: NDArray) -> None:
    names = short_names(results.class_names)
    present = np.flatnonzero(results.num_truth_C)
    for c in present if len(present) > 1 else []:
        if len(present) <= MAX_NAMED_CLASSES:
            label = f"{names[c]} {value_C[c]:.2f}"
            axes.plot(x, curve[c], color=chart_color(int(c)), linewidth=1.1, label=label)
        else:
            axes.plot(x, curve[c], color=MUTED, linewidth=0.6, alpha=0.6)


def _save(axes: Axes, x: str, y: str, path: Path) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    tidy(axes, x, y, grid="both")
    legend_below(axes)
    axes.figure.savefig(path)


def _draw_matrix(results: DetectionResults, is_share: bool, path: Path) -> None:
    values = results.confusion.astype(float)
    name, about = "Confusion matrix", "boxes"
    if is_share:
        totals = values.sum(axis=0, keepdims=True)
        values = np.divide(values, totals, out=np.zeros_like(values), where=totals > 0)
        name, about = "Confusion matrix, normalised", "shares of each true class"
    num = len(values)
    side_in = min(max(4.6, 0.42 * num + 2), 20)
    figure = new_figure(side_in + 0.6, side_in)
    axes = figure.subplots()
    largest = 1.0 if is_share else max(values.max(), 1.0)
    image = axes.imshow(np.where(values > 0, values, np.nan), cmap="Blues", vmin=0, vmax=largest)
    names = [*short_names(results.class_names), "background"]
    size = 9 if num <= MAX_WRITTEN_CELLS else 6
    axes.set_xticks(range(num), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(num), names, fontsize=size)
    if num <= MAX_WRITTEN_CELLS:
        for row, column in zip(*np.nonzero(values), strict=True):
            value = values[row, column]
            color = "white" if value > 0.55 * largest else INK
            text = f"{value:.2f}".replace("0.", ".") if is_share and value < 1 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xlabel("true class", color=MUTED)
    axes.set_ylabel("predicted class", color=MUTED)
    title(axes, name, f"{about}, at confidence {CONFUSION_CONFIDENCE} and IoU {CONFUSION_IOU}")
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, num), minor=True)
    axes.set_yticks(np.arange(-0.5, num), minor=True)
    axes.grid(which="minor", color=SHADE, linewidth=1)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    figure.savefig(path)
