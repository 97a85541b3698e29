"""Precision, recall and F1 over confidence, precision over recall, and the confusion matrix, as pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from engine.report.style import BAD, INK, MUTED, chart_color, drawable_names, new_figure, shortened, tidy, title
from engine.validation.metrics import COCO_RECALLS, CONFIDENCES, CONFUSION_CONFIDENCE, CONFUSION_IOU, DetectionResults

MAX_NAMED_CLASSES = 16
"""With more classes, single ones are thin gray lines without names."""
MAX_WRITTEN_CELLS = 32
"""With more classes, the cells of a confusion matrix hold no numbers."""
BACKGROUND = "background"
ALL_CLASSES = "all classes"
ABOUT_CONFUSION = f"at confidence {CONFUSION_CONFIDENCE} and IoU {CONFUSION_IOU}"


def curve_pictures(results: DetectionResults) -> dict[str, Callable[[Path], None]]:
    """How to draw each picture, by its name: the four curves, if there is any truth, and the two matrices."""
    pictures: dict[str, Callable[[Path], None]] = {}
    if results.num_truth_C.any():
        pictures["PR_curve.png"] = partial(_draw_pr, results)
        over_confidence = {
            "F1": ("F1", results.f1_curve),
            "P": ("precision", results.precision_curve),
            "R": ("recall", results.recall_curve),
        }
        for letter, (name, curve) in over_confidence.items():
            pictures[f"{letter}_curve.png"] = partial(_draw_over_confidence, results, name, curve)
    pictures["confusion_matrix.png"] = partial(_draw_counts, results)
    pictures["confusion_matrix_normalized.png"] = partial(_draw_shares, results)
    return pictures


def _draw_pr(results: DetectionResults, path: Path) -> None:
    figure = new_figure(6.2, 4.6)
    axes = figure.subplots()
    labels = [f"{ap:.2f}" for ap in results.ap50_C]
    _draw_classes(axes, results, COCO_RECALLS, results.pr_curve, labels)
    mean = np.nanmean(results.pr_curve, axis=0)
    axes.plot(COCO_RECALLS, mean, color=INK, linewidth=2.5, label=f"{ALL_CLASSES}: mAP50 {results.map50:.3f}")
    about = "a detection is right from IoU 0.5 on; in the legend: AP50"
    _finish(axes, "Precision over recall", about, "recall", "precision")
    figure.savefig(path)


def _draw_over_confidence(results: DetectionResults, name: str, curve: NDArray, path: Path) -> None:
    figure = new_figure(6.2, 4.6)
    axes = figure.subplots()
    at_best = curve[:, np.searchsorted(CONFIDENCES, results.confidence)]
    _draw_classes(axes, results, CONFIDENCES, curve, [f"{value:.2f}" for value in at_best])
    mean = np.nanmean(curve[results.num_truth_C > 0], axis=0)
    value = float(np.interp(results.confidence, CONFIDENCES, mean))
    axes.plot(CONFIDENCES, mean, color=INK, linewidth=2.5, label=f"{ALL_CLASSES}: {value:.3f}")
    axes.axvline(results.confidence, color=BAD, linewidth=1, linestyle=":", label="best mean F1")
    about = f"the best mean F1 is at confidence {results.confidence:.3f}; in the legend: {name} there"
    _finish(axes, f"{name[0].upper()}{name[1:]} over confidence", about, "confidence", name)
    figure.savefig(path)


def _draw_classes(axes: Axes, results: DetectionResults, x: NDArray, curve: NDArray, values: list[str]) -> None:
    names = drawable_names(results.class_names)
    present = np.flatnonzero(results.num_truth_C)
    for c in present if len(present) > 1 else []:
        if len(present) <= MAX_NAMED_CLASSES:
            label = f"{shortened(names[c])} {values[c]}"
            axes.plot(x, curve[c], color=chart_color(int(c)), linewidth=1.1, label=label)
        else:
            axes.plot(x, curve[c], color=MUTED, linewidth=0.6, alpha=0.6)


def _finish(axes: Axes, name: str, about: str, x: str, y: str) -> None:
    title(axes, name, about)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    tidy(axes, "both")
    handles, labels = axes.get_legend_handles_labels()
    first = next(i for i, label in enumerate(labels) if label.startswith(ALL_CLASSES))
    handles, labels = handles[first:] + handles[:first], labels[first:] + labels[:first]  # drawn last, to be on top
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)


def _draw_counts(results: DetectionResults, path: Path) -> None:
    counts = results.confusion.astype(float)
    _draw_matrix(results, counts, ("Confusion matrix", f"boxes, {ABOUT_CONFUSION}"), path, is_share=False)


def _draw_shares(results: DetectionResults, path: Path) -> None:
    counts = results.confusion.astype(float)
    totals = counts.sum(axis=0, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    heading = ("Confusion matrix, normalised", f"shares of each true class, {ABOUT_CONFUSION}")
    _draw_matrix(results, shares, heading, path, is_share=True)


def _draw_matrix(
    results: DetectionResults, values: NDArray, heading: tuple[str, str], path: Path, is_share: bool
) -> None:
    num = len(values)
    side = min(max(4.6, 0.42 * num + 2), 20)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    shown = np.where(values > 0, values, np.nan)
    largest = 1.0 if is_share else max(values.max(), 1.0)
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=largest)
    names = [shortened(label) for label in [*drawable_names(results.class_names), BACKGROUND]]
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
    title(axes, *heading)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, num), minor=True)
    axes.set_yticks(np.arange(-0.5, num), minor=True)
    axes.grid(which="minor", color="#eef1f4", linewidth=1)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=8)
    figure.savefig(path)
