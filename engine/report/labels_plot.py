"""``labels.png``: the boxes of a split: boxes per class, boxes per image, their sizes and their positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from data.indexing.dataset_facts import SIZE_EDGES_PX, box_sizes_px
from data.indexing.index import ImageIndex
from engine.report.style import INK, MUTED, PALETTE, chart_color, log_scale, new_figure, short_names, tidy, title

MAX_CLASSES = 40
"""Most bars in the chart of classes. If there are more classes, the most frequent ones are shown."""
LOG_RATIO = 50
"""The class axis is logarithmic if the largest class has at least this many times the boxes of the smallest."""
BINS = 64


def draw_labels(index: ImageIndex, class_names: list[str], image_size: int, split: str, path: Path) -> None:
    """Draw the four charts.

    Args:
        index: The images of a split and their boxes.
        class_names: By class id.
        image_size: Side of the network's input in pixels; the chart of sizes is in pixels of this input.
        split: Name of the split, for the heading.
        path: The file to write.
    """
    figure = new_figure(11, 8)
    grid = figure.subplots(2, 2)
    _draw_classes(grid[0, 0], np.bincount(index.classes, minlength=len(class_names)), class_names)
    _draw_counts(grid[0, 1], np.diff(index.box_offsets))
    _draw_sizes(grid[1, 0], box_sizes_px(index, image_size), image_size)
    _draw_centers(grid[1, 1], (index.boxes_xyxy_rel[:, 2:] + index.boxes_xyxy_rel[:, :2]) / 2)
    heading = f"{split}: {len(index):,} images, {len(index.classes):,} boxes, {len(class_names)} classes"
    figure.suptitle(heading, x=0.01, ha="left", color=INK, fontweight="bold", fontsize=13)
    figure.savefig(path)


def _draw_classes(axes: Axes, counts: np.ndarray, class_names: list[str]) -> None:
    order = np.argsort(-counts, kind="stable")[:MAX_CLASSES]
    names = short_names(class_names)
    axes.bar(range(len(order)), counts[order], color=[chart_color(int(c)) for c in order])
    axes.set_xticks(range(len(order)), [names[c] for c in order], rotation=45, ha="right", rotation_mode="anchor")
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
    title(axes, "Boxes per class", about)
    tidy(axes)


def _draw_counts(axes: Axes, boxes_per_image: np.ndarray) -> None:
    most = int(boxes_per_image.max(initial=0))
    edges = np.linspace(-0.5, most + 0.5, min(most + 2, BINS))
    axes.hist(boxes_per_image, bins=edges.tolist(), color=PALETTE[0])
    empty = int((boxes_per_image == 0).sum())
    title(axes, "Boxes per image", f"median {np.median(boxes_per_image):.0f}, most {most}; {empty:,} images have none")
    tidy(axes, "boxes", "images")


def _draw_sizes(axes: Axes, sizes_wh_px: np.ndarray, image_size: int) -> None:
    """Draw widths against heights on logarithmic axes, with lines where the size classes of `SIZE_EDGES_PX` begin."""
    edges = np.geomspace(1, image_size, BINS + 1)
    axes.set(xscale="log", yscale="log")
    _draw_density(axes, sizes_wh_px.clip(1, image_size), edges)
    ticks = [1, *(edge for edge in SIZE_EDGES_PX if edge < image_size), image_size]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    tidy(axes, "width (px)", "height (px)", grid="both")
    title(axes, "Sizes of the boxes", f"in pixels of the network's input at image size {image_size}")


def _draw_centers(axes: Axes, centers: np.ndarray) -> None:
    _draw_density(axes, centers, np.linspace(0, 1, BINS + 1))
    axes.invert_yaxis()
    tidy(axes, "x", "y", grid="both")
    title(axes, "Centers of the boxes", "as shares of the image's width and height")


def _draw_density(axes: Axes, points: np.ndarray, edges: np.ndarray) -> None:
    """Draw how many of the points (N, 2) lie in each square of a grid; darker squares have more."""
    density, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=(edges, edges))
    colors = LogNorm(0.5, max(density.max(), 1))
    axes.pcolormesh(edges, edges, np.where(density > 0, density, np.nan).T, cmap="Blues", norm=colors)
    axes.set_aspect("equal")
