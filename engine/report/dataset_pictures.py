"""Pictures of a data set: how frequent the classes are, how large the objects and where, and some examples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.indexing.dataset_facts import SIZE_EDGES_PX, DatasetFacts, box_sizes_px
from data.indexing.index import ImageIndex
from engine.report.pictures import draw_examples
from engine.report.style import drawable_names, drawing, plain_numbers, shortened

log = logging.getLogger(__name__)
SPLIT_COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}  # told apart by the color-blind too
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "legend.frameon": False,
}
MAX_CLASSES = 60
DOTS_PER_INCH = 130


def write_pictures(folder: Path, facts: DatasetFacts, indices: dict[str, ImageIndex]) -> list[Path]:
    """Write ``classes.png``, ``boxes.png`` and ``examples_<split>.png``; one that cannot be drawn is a warning.

    Args:
        folder: An existing folder.
        facts: Of the data set.
        indices: The usable images of each split.

    Returns:
        The files that could be made.

    Raises:
        OSError: If they cannot be written.
    """
    pictures: dict[str, Callable[[Path], None]] = {
        "classes": lambda file: class_figure(facts).savefig(file, dpi=DOTS_PER_INCH),
        "boxes": lambda file: box_figure(indices["train"], facts.image_size).savefig(file, dpi=DOTS_PER_INCH),
    }
    for split, index in indices.items():
        if len(index):
            pictures[f"examples_{split}"] = partial(draw_examples, index, facts.names)
    with drawing(), mpl.rc_context(STYLE):
        files = [_write(folder / f"{name}.png", draw) for name, draw in pictures.items()]
    return [file for file in files if file is not None]


def _write(file: Path, draw: Callable[[Path], None]) -> Path | None:
    try:
        draw(file)
    except OSError:  # of the disk: the others would fail, too
        raise
    except Exception as error:  # the other pictures and the numbers are worth having
        log.warning("%s cannot be drawn (%s: %s): the others are made", file, type(error).__name__, error)
        log.debug("the cause", exc_info=error)
        return None
    return file


def class_figure(facts: DatasetFacts) -> Figure:
    """Objects of each class and split as bars, the most frequent class at the top."""
    counts = {split: np.array(part.boxes_per_class) for split, part in facts.splits.items()}
    order = np.argsort(-counts["train"], kind="stable")[:MAX_CLASSES]
    figure = Figure(figsize=(9, 1.6 + 0.34 * len(order)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(counts)
    largest = max(1, *(int(values.max(initial=0)) for values in counts.values()))
    for position, (split, values) in enumerate(counts.items()):
        places = np.arange(len(order)) + (position - (len(counts) - 1) / 2) * height
        bars = axes.barh(places, values[order], height * 0.92, label=split, color=SPLIT_COLORS[split])
        axes.bar_label(bars, [f"{count:,}" for count in values[order]], padding=3, fontsize=8, color="#444444")
    names = drawable_names(facts.names)
    axes.set_yticks(range(len(order)), [shortened(names[class_id]) for class_id in order])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=10)
    plain_numbers(axes.xaxis)
    axes.set_xlim(0, largest * 2)
    axes.set_xlabel("objects (logarithmic)")
    rest = len(facts.names) - len(order)
    axes.set_title("Objects per class" + (f", without the {rest} rarest" if rest else ""))
    axes.legend(loc="lower right")
    axes.grid(axis="y", visible=False)
    return figure


def box_figure(index: ImageIndex, image_size: int) -> Figure:
    """Sizes of the training objects as a histogram, their widths against heights, and where their centers are."""
    sizes_px = box_sizes_px(index, image_size)
    corners = index.boxes_xyxy_rel
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    histogram, shapes, places = figure.subplots(1, 3)
    _draw_size_histogram(histogram, np.sqrt(sizes_px.prod(axis=1)), image_size)
    edges = np.geomspace(1, image_size * 1.01, 60)
    shapes.hist2d(
        *sizes_px.clip(1, image_size).T, bins=(edges, edges), cmap="Blues", norm="log" if len(sizes_px) else None
    )
    shapes.plot([1, image_size], [1, image_size], color="#888888", linewidth=0.8, linestyle=":")
    _mark_pixels(shapes, "x", image_size)
    _mark_pixels(shapes, "y", image_size)
    shapes.set(title="Width and height", xlabel="width (px)", ylabel="height (px)")
    centers = (corners[:, :2] + corners[:, 2:]) / 2
    places.hist2d(*centers.T, bins=40, range=((0, 1), (0, 1)), cmap="Blues")
    places.invert_yaxis()
    places.set(title="Where the centers are", xlabel="left to right of the image", ylabel="top to bottom of the image")
    for axes in (shapes, places):
        axes.set_aspect("equal")
        axes.grid(visible=False)
    figure.suptitle(f"{len(corners):,} training objects, sizes in pixels at image size {image_size}")
    return figure


def _draw_size_histogram(axes: Axes, sides_px: np.ndarray, image_size: int) -> None:
    edges = np.geomspace(1, image_size * 1.01, 50)
    axes.hist(sides_px.clip(1, image_size), edges.tolist(), color=SPLIT_COLORS["train"])
    limits = _size_limits(image_size)
    shares = np.histogram(sides_px.clip(1, image_size), limits)[0] / max(len(sides_px), 1)
    axes.margins(y=0.12)
    for low, high, share in zip(limits, limits[1:], shares, strict=False):
        axes.text(
            math.sqrt(low * high), 0.98, f"{share:.0%}", transform=axes.get_xaxis_transform(), ha="center", va="top"
        )
    for edge in limits[1:-1]:
        axes.axvline(edge, color="#888888", linewidth=0.8, linestyle=":")
    _mark_pixels(axes, "x", image_size)
    axes.set(title="Size of objects", xlabel="square root of the area (px)", ylabel="objects")


def _mark_pixels(axes: Axes, which: str, image_size: int) -> None:
    """A logarithmic axis in pixels, marked where the classes of sizes begin."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (1, image_size)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    limits = _size_limits(image_size)
    axis.set_ticks(limits, [str(limit) for limit in limits])
    axis.set_ticks([], minor=True)


def _size_limits(image_size: int) -> list[int]:
    return [1, *(edge for edge in SIZE_EDGES_PX if edge < image_size), image_size]
