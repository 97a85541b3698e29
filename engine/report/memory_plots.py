"""Pictures of a run's memory: the timeline from ``memory.csv``, and the breakdown of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.memory.units import GIB, MIB, format_bytes
from engine.report.memory_log import (
    ALLOCATED,
    EVENT,
    OOM_RECOVERY,
    OUT_OF_MEMORY,
    PEAK,
    PHASE,
    RESERVED,
    SPEED,
    SPILL,
    TIME,
    TOTAL,
    USED,
)

INK, MUTED, RULE, SHADE = "#24292f", "#57606a", "#d0d7de", "#eaeef2"
LINES = {
    USED: ("used (driver, all programs)", "#24292f"),
    RESERVED: ("reserved (torch's cache)", "#0969da"),
    PEAK: ("peak allocated so far", "#8250df"),
    ALLOCATED: ("allocated between steps", "#c297ff"),
}
EVENT_COLOURS = {OOM_RECOVERY: "#bc4c00", OUT_OF_MEMORY: "#cf222e", SPILL: "#bf3989"}
BUDGET_COLOUR, PLAN_COLOUR, SPEED_COLOUR = "#cf222e", "#bf8700", "#1a7f37"
PALETTE = (
    "#0969da", "#8250df", "#1a7f37", "#bf8700", "#bf3989", "#57606a",
    "#54aeff", "#c297ff", "#6fdd8b", "#eac54f", "#ff80c8", "#afb8c1",
    "#0a3069", "#3e1f79", "#044f1e", "#633c01",
)  # fmt: skip


def draw_timeline(
    columns: Mapping[str, list],
    path: Path,
    budget_bytes: int | None = None,
    planned_peak_bytes: int | None = None,
) -> None:
    """Draw ``memory.png``: memory over time with validations, events, budget and plan; images/s below.

    Args:
        columns: From `engine.report.memory_log.read_memory_log`.
        path: Where the picture goes.
        budget_bytes: Drawn as a line, if known.
        planned_peak_bytes: Drawn as a line, if there was a plan.
    """
    seconds = np.array(columns[TIME])
    divisor, unit = (60, "minutes") if seconds.size and seconds[-1] > 180 else (1, "seconds")
    times = seconds / divisor
    figure = Figure(figsize=(11, 5.2), dpi=150, layout="constrained")
    memory, speed = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))

    _draw_memory(memory, times, columns)
    _draw_limits(memory, columns[TOTAL], budget_bytes, planned_peak_bytes)
    training_speed = np.where(np.array(columns[PHASE]) == "train", columns[SPEED], np.nan)
    speed.plot(times, training_speed, color=SPEED_COLOUR, linewidth=1.2)
    for axes in (memory, speed):
        _draw_validations(axes, times, columns[PHASE])
        _draw_events(axes, times, columns[EVENT])

    memory.set_title(_title(columns), loc="left", color=INK, fontweight="bold", fontsize=11, pad=12)
    memory.set_ylabel("GiB", color=MUTED)
    speed.set_ylabel("images/s", color=MUTED)
    speed.set_xlabel(f"{unit} since the start", color=MUTED)
    for axes in (memory, speed):
        axes.margins(x=0.01)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        _tidy(axes)
    _draw_legend(figure, memory, ncols=4)
    figure.savefig(path)


def draw_breakdown(components: Mapping[str, int], path: Path, budget_bytes: int | None = None) -> None:
    """Draw ``memory_breakdown.png``: who holds the bytes at the planned peak, as one stacked bar.

    Args:
        components: Bytes by name; they add up to the peak.
        path: Where the picture goes.
        budget_bytes: Drawn as a line, if known.
    """
    total_bytes = sum(components.values())
    figure = Figure(figsize=(11, 2.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    left_gib = 0.0
    largest_first = sorted(components.items(), key=lambda item: item[1], reverse=True)
    for index, (name, num_bytes) in enumerate(largest_first):
        label = f"{name}: {format_bytes(num_bytes)} ({num_bytes / total_bytes:.1%})"
        axes.barh(
            0,
            num_bytes / GIB,
            left=left_gib,
            color=PALETTE[index % len(PALETTE)],
            edgecolor="white",
            label=label,
        )
        left_gib += num_bytes / GIB
    if budget_bytes is not None:
        label = f"budget: {format_bytes(budget_bytes)}"
        axes.axvline(budget_bytes / GIB, color=BUDGET_COLOUR, linestyle="--", label=label)
    title = f"Planned peak: {format_bytes(total_bytes)}"
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=11)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.set_xlabel("GiB", color=MUTED)
    _tidy(axes)
    _draw_legend(figure, axes, ncols=3)
    figure.savefig(path)


def _draw_memory(axes: Axes, times: np.ndarray, columns: Mapping[str, list]) -> None:
    for name, (label, colour) in LINES.items():
        gib = np.array(columns[name]) * MIB / GIB
        if np.isnan(gib).all():
            continue
        axes.plot(times, gib, color=colour, label=label, linewidth=1.4)
        if name == ALLOCATED:
            axes.fill_between(times, gib, color=colour, alpha=0.3, linewidth=0)


def _draw_limits(axes: Axes, total_mib: list[float], budget_bytes: int | None, planned_peak_bytes: int | None) -> None:
    total_bytes = total_mib[-1] * MIB if total_mib else None
    limits = (
        ("memory of the device", total_bytes, MUTED, ":"),
        ("budget", budget_bytes, BUDGET_COLOUR, "--"),
        ("planned peak", planned_peak_bytes, PLAN_COLOUR, "-."),
    )
    for name, num_bytes, colour, style in limits:
        if num_bytes is not None and np.isfinite(num_bytes):
            label = f"{name}: {format_bytes(int(num_bytes))}"
            axes.axhline(num_bytes / GIB, color=colour, linestyle=style, linewidth=1.2, label=label)


def _draw_events(axes: Axes, times: np.ndarray, events: list[str]) -> None:
    top = axes.get_xaxis_transform()  # x in data, y from 0 at the bottom to 1 at the top
    for name, colour in EVENT_COLOURS.items():
        moments = times[np.array([name in event.split("; ") for event in events], dtype=bool)]
        if moments.size:
            axes.vlines(moments, 0, 1, transform=top, color=colour, linewidth=1)
            label = f"{name} ({moments.size})"
            axes.plot(moments, np.ones_like(moments), "v", transform=top, color=colour, clip_on=False, label=label)


def _draw_validations(axes: Axes, times: np.ndarray, phases: list[str]) -> None:
    """Shade each validation, from the last sample of training on."""
    label = "validation"
    for phase, group in groupby(range(len(phases)), key=phases.__getitem__):
        rows = list(group)
        if phase == "validation":
            start, end = times[max(rows[0] - 1, 0)], times[rows[-1]]
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0, label=label)
            label = None  # one entry in the legend


def _title(columns: Mapping[str, list]) -> str:
    peaks = {name: np.nanmax(columns[name]) for name in (USED, PEAK) if not np.isnan(columns[name]).all()}
    if PEAK not in peaks:
        return f"Memory of the process: at most {_gib(peaks.get(USED, 0))}"
    return f"GPU memory: at most {_gib(peaks[USED])} used, of which {_gib(peaks[PEAK])} allocated by training"


def _gib(mib: float) -> str:
    return format_bytes(int(mib * MIB))


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def _draw_legend(figure: Figure, axes: Axes, ncols: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9, labelcolor=INK)
