"""``labels.png``: what the training boxes are like: how many of each class, how large, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from data.indexing.index import ImageIndex
from engine.report.style import (
    INK,
    MUTED,
    PALETTE,
    chart_color,
    drawable_names,
    log_scale,
    new_figure,
    shortened,
    tidy,
    title,
)

MAX_CLASSES = 40
"""Bars of a chart; of more classes, those with most boxes are shown."""
LOG_RATIO = 50
"""From this ratio of the largest to the smallest class on, bars grow with the logarithm."""
BINS = 64


def draw_labels(index: ImageIndex, class_names: list[str], path: Path, split: str = "training") -> None:
    """Draw the four charts.

    Args:
        index: The images of a split and their boxes.
        class_names: By class id.
        path: Where the picture goes.
        split: Its name, for the title.
    """
    boxes_per_image = np.diff(index.box_offsets)
    figure = new_figure(11, 8)
    grid = figure.subplots(2, 2)
    _draw_classes(grid[0, 0], np.bincount(index.classes, minlength=len(class_names)), class_names)
    _draw_counts(grid[0, 1], boxes_per_image)
    sizes = index.boxes_xyxy_rel[:, 2:] - index.boxes_xyxy_rel[:, :2]
    centers = (index.boxes_xyxy_rel[:, 2:] + index.boxes_xyxy_rel[:, :2]) / 2
    largest = min(1.05 * float(sizes.max(initial=0.01)), 1.0)
    _draw_density(grid[1, 0], sizes, "Sizes of the boxes", "in parts of the image", ("width", "height"), largest)
    _draw_density(grid[1, 1], centers, "Centers of the boxes", "the whole image", ("x", "y"))
    grid[1, 1].invert_yaxis()
    heading = f"{len(index):,} {split} images, {len(index.classes):,} boxes, {len(class_names)} classes"
    figure.suptitle(heading, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=13)
    figure.savefig(path)


def _draw_classes(axes: Axes, counts: np.ndarray, class_names: list[str]) -> None:
    order = np.argsort(-counts, kind="stable")[:MAX_CLASSES]
    names = drawable_names(class_names)
    axes.bar(range(len(order)), counts[order], color=[chart_color(int(c)) for c in order])
    shown = [shortened(names[c]) for c in order]
    axes.set_xticks(range(len(order)), shown, rotation=45, ha="right", rotation_mode="anchor")
    present = counts[counts > 0]
    is_log = present.size > 0 and present.max() / present.min() >= LOG_RATIO
    if is_log:
        log_scale(axes)
    if len(order) <= MAX_CLASSES // 2:
        for place, c in enumerate(order):
            axes.annotate(f"{counts[c]:,}", (place, counts[c]), (0, 2), textcoords="offset points", ha="center",
                          color=MUTED, fontsize=8)  # fmt: skip
    about = "most frequent first" + (", logarithmic" if is_log else "")
    if len(counts) > MAX_CLASSES:
        about += f"; {len(counts) - MAX_CLASSES} more are not shown"
    title(axes, "Boxes of each class", about)
    tidy(axes)


def _draw_counts(axes: Axes, boxes_per_image: np.ndarray) -> None:
    most = int(boxes_per_image.max(initial=0))
    edges = np.linspace(-0.5, most + 0.5, min(most + 2, BINS))
    axes.hist(boxes_per_image, bins=edges.tolist(), color=PALETTE[0])
    empty = int((boxes_per_image == 0).sum())
    about = f"median {np.median(boxes_per_image):.0f}, most {most}; {empty:,} images have none"
    title(axes, "Boxes in an image", about)
    axes.set_xlabel("boxes", color=MUTED)
    axes.set_ylabel("images", color=MUTED)
    tidy(axes)


def _draw_density(
    axes: Axes, points: np.ndarray, name: str, about: str, labels: tuple[str, str], end: float = 1.0
) -> None:
    """A map of points (N, 2) between 0 and ``end``, darker where they are many."""
    density, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=BINS, range=((0, end), (0, end)))
    shown = np.where(density > 0, density, np.nan).T
    colors = LogNorm(0.5, max(density.max(), 1))
    axes.imshow(shown, cmap="Blues", norm=colors, origin="lower", extent=(0, end, 0, end))
    title(axes, name, about)
    axes.set_xlabel(labels[0], color=MUTED)
    axes.set_ylabel(labels[1], color=MUTED)
    tidy(axes, "both")
