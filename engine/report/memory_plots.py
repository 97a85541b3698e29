"""Pictures of a run's memory: the timeline from ``memory.csv``, and the parts of a planned peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from engine.memory.units import GIB, MIB, format_bytes
from engine.report import memory_log
from engine.report.memory_log import Columns, has_event, is_gpu, largest_bytes
from engine.report.style import INK, PALETTE, SHADE, legend_below, new_figure, tidy, title

LINES = {  # label, color, opacity of the area below
    memory_log.USED: ("used (driver, all programs)", "#57606a", 0.12),
    memory_log.RESERVED: ("reserved (torch's cache)", "#0969da", 0.16),
    memory_log.PEAK: ("allocated, highest so far", "#8250df", 0.0),
    memory_log.ALLOCATED: ("allocated between steps", "#c297ff", 0.4),
}
PROCESS_LINES = {memory_log.USED: ("RAM of the process, without its loader's workers", "#0969da", 0.16)}
EVENTS = {
    memory_log.OOM_RECOVERY: ("recovery from out of memory", "#bc4c00", "v"),
    memory_log.OUT_OF_MEMORY: ("out of memory", "#cf222e", "X"),
    memory_log.SPILL: ("spill into system RAM", "#bf3989", "D"),
    memory_log.RESUMED: ("resumed", "#57606a", ">"),
}
BUDGET_COLOR, PLAN_COLOR, SPEED_COLOR = "#cf222e", "#bf8700", "#1a7f37"
MAX_POINTS = 2000
"""Most points of a line; the picture cannot show more."""
MIN_LABELED_SHARE = 0.05
"""A part of the bar with at least this share has its share written inside."""


def draw_timeline(
    columns: Columns, path: Path, budget_bytes: int | None = None, planned_peak_bytes: int | None = None
) -> None:
    """Draw ``memory.png``: memory over time with validations, events, budget and plan; images per second below.

    Args:
        columns: From `engine.report.memory_log.read_memory_log`.
        path: The file to write.
        budget_bytes: Drawn as a line; None draws no line.
        planned_peak_bytes: Drawn as a line; None draws no line.
    """
    seconds = np.array(columns[memory_log.TIME])
    divisor, unit = _time_unit(seconds)
    times = seconds / divisor
    figure = new_figure(11, 5.6)
    memory, speed = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))

    _draw_memory(memory, times, columns)
    if is_gpu(columns):
        _draw_limits(memory, columns[memory_log.TOTAL], budget_bytes, planned_peak_bytes)
    _draw_speed(speed, times, columns)
    for axes in (memory, speed):
        _draw_validations(axes, times, columns[memory_log.PHASE])
        _draw_events(axes, times, columns)
        axes.set_xlim(0, times[-1] or 1)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    tidy(memory, y="GiB")
    tidy(speed, f"{unit} since the start", "images/s")
    title(memory, *_title(columns))
    memory.yaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 4, 5, 8, 10]))
    legend_below(memory)
    figure.savefig(path)


def draw_breakdown(components: Mapping[str, int], path: Path, budget_bytes: int | None = None) -> None:
    """Draw ``memory_breakdown.png``: the parts of the planned peak as one stacked bar.

    Args:
        components: Bytes by name; they add up to the peak.
        path: The file to write.
        budget_bytes: Drawn as a line; None draws no line.
    """
    figure = new_figure(11, 3.6)
    axes = figure.subplots()
    total_bytes = sum(components.values())
    left_gib = 0.0
    held = [(name.replace("_", " "), num_bytes) for name, num_bytes in components.items() if num_bytes > 0]
    for index, (name, num_bytes) in enumerate(sorted(held, key=lambda item: item[1], reverse=True)):
        gib, share = num_bytes / GIB, num_bytes / total_bytes
        label = f"{name}: {format_bytes(num_bytes)} ({share:.1%})"
        color = PALETTE[index % len(PALETTE)]
        axes.barh(0, gib, left=left_gib, color=color, edgecolor="white", linewidth=0.6, label=label)
        if share >= MIN_LABELED_SHARE:
            inside = f"{name}\n{share:.0%}" if share >= 4 * MIN_LABELED_SHARE else f"{share:.0%}"
            axes.text(left_gib + gib / 2, 0, inside, ha="center", va="center", color="white", fontsize=10)
        left_gib += gib
    heading = f"Planned peak of memory: {format_bytes(total_bytes)}"
    if budget_bytes is not None:
        axes.axvline(budget_bytes / GIB, color=BUDGET_COLOR, linestyle="--")
        axes.text(budget_bytes / GIB, 0, " budget", color=BUDGET_COLOR, rotation=90, ha="left", va="center")
        left_bytes = budget_bytes - total_bytes
        verdict = f"{format_bytes(abs(left_bytes))} {'left' if left_bytes >= 0 else 'too much'}"
        heading += f", of a budget of {format_bytes(budget_bytes)} ({verdict})"
    title(axes, heading)
    axes.set_xlim(0, 1.04 * max(left_gib, (budget_bytes or 0) / GIB))
    axes.set_yticks([])
    tidy(axes, "GiB")
    legend_below(axes)
    figure.savefig(path)


def _draw_memory(axes: Axes, times: np.ndarray, columns: Columns) -> None:
    for name, (label, color, strength) in (LINES if is_gpu(columns) else PROCESS_LINES).items():
        gib = np.array(columns[name]) * MIB / GIB
        if np.isnan(gib).all():
            continue
        shown_times, shown_gib = _thin(times, gib, np.max)
        axes.plot(shown_times, shown_gib, color=color, label=label, linewidth=1.6)
        axes.fill_between(shown_times, shown_gib, color=color, alpha=strength, linewidth=0)


def _draw_speed(axes: Axes, times: np.ndarray, columns: Columns) -> None:
    in_training = np.array(columns[memory_log.PHASE]) == "train"
    speeds = np.array(columns[memory_log.SPEED])
    shown_times, shown_speeds = _thin(times[in_training], speeds[in_training], np.median)
    axes.plot(shown_times, shown_speeds, color=SPEED_COLOR, linewidth=1.2)


def _draw_limits(axes: Axes, total_mib: list[float], budget_bytes: int | None, planned_peak_bytes: int | None) -> None:
    limits = (
        ("memory of the device", total_mib[-1] * MIB, INK, ":"),
        ("budget", budget_bytes, BUDGET_COLOR, "--"),
        ("planned peak, CUDA included", planned_peak_bytes, PLAN_COLOR, "-."),
    )
    for name, num_bytes, color, style in limits:
        if num_bytes is not None and np.isfinite(num_bytes):
            label = f"{name}: {format_bytes(int(num_bytes))}"
            axes.axhline(num_bytes / GIB, color=color, linestyle=style, linewidth=1.4, label=label)


def _draw_events(axes: Axes, times: np.ndarray, columns: Columns) -> None:
    top = axes.get_xaxis_transform()  # x in data, y from 0 at the bottom to 1 at the top
    for name, (label, color, marker) in EVENTS.items():
        moments = times[np.array(has_event(columns, name), dtype=bool)]
        if moments.size:
            label = f"{label} ({moments.size})"
            axes.vlines(moments, 0, 1, transform=top, color=color, linewidth=1, zorder=3)
            heights = np.ones_like(moments)
            axes.plot(moments, heights, marker, transform=top, color=color, clip_on=False, markersize=7, label=label)


def _draw_validations(axes: Axes, times: np.ndarray, phases: list[str]) -> None:
    """Shade each validation, beginning at the last sample before it."""
    label: str | None = "validation"
    for phase, group in groupby(range(len(phases)), key=phases.__getitem__):
        rows = list(group)
        if phase == "validation":
            start, end = times[max(rows[0] - 1, 0)], times[rows[-1]]
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0, label=label)
            label = None  # only one entry in the legend


def _thin(
    times: np.ndarray, values: np.ndarray, reduce: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: for each group of rows its last time, and ``reduce`` of its values."""
    is_known = ~np.isnan(values)
    times, values = times[is_known], values[is_known]
    if values.size <= MAX_POINTS:
        return times, values
    groups = np.array_split(np.arange(values.size), MAX_POINTS)
    return times[[rows[-1] for rows in groups]], np.array([reduce(values[rows]) for rows in groups])


def _time_unit(seconds: np.ndarray) -> tuple[int, str]:
    duration = seconds[-1]
    if duration > 3 * 3600:
        return 3600, "hours"
    return (60, "minutes") if duration > 3 * 60 else (1, "seconds")


def _title(columns: Columns) -> tuple[str, str]:
    if not is_gpu(columns):
        return f"Memory of the process: at most {_largest(columns[memory_log.USED])} of RAM", ""
    used, total, peak = (_largest(columns[name]) for name in (memory_log.USED, memory_log.TOTAL, memory_log.PEAK))
    return f"GPU memory: at most {used} of {total} in use", f"training allocated at most {peak}"


def _largest(mib: list[float]) -> str:
    return format_bytes(largest_bytes(mib) or 0)
