"""Show a plan: the table with its verdicts, the use of the bytes, and the keys to put into a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.memory.units import GIB, MIB, format_bytes
from engine.planning.choose import MARGIN_SHARE, PlanRow, Recommendation, Verdict, margin_of

VERDICT_STYLES: dict[Verdict, str] = {"fits": "green", "tight": "yellow", "spills": "red"}
HELD = {
    "weights": ("weights", "blue"),
    "gradients": ("gradients", "blue"),
    "momentum": ("optimizer: momentum", "blue"),
    "variance": ("optimizer: variance", "blue"),
    "ema": ("average of the weights (EMA)", "blue"),
    "activations": ("activations", "cyan"),
    "activation_gradients": ("gradients of activations, recomputation", "cyan"),
    "inputs": ("images", "green"),
    "loss": ("loss and assignment", "green"),
    "autocast_copies": ("half-precision copies of weights", "magenta"),
    "temporaries": ("other temporaries", "magenta"),
    "workspaces": ("workspaces of matrix products", "magenta"),
    "allocator_rounding": ("rounding of the allocator", "magenta"),
    "allocator_gaps": ("gaps in the allocator", "magenta"),
    "cuda_context": ("CUDA itself", "yellow"),
}
"""Name and color of each component."""
BAR_CELLS = 24
SMALLEST_SHOWN_BYTES = 8 * MIB


def table(rows: Sequence[PlanRow]) -> Table:
    """Peaks in GiB and verdicts, one column per recompute level; precisions with equal peaks share a line."""
    levels = list(dict.fromkeys(row.recompute for row in rows))
    digits = 1 if max(row.peak_bytes for row in rows) >= 4 * GIB else 2
    shown = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("image", "micro-batch", "precision"):
        shown.add_column(heading, justify="left" if heading == "precision" else "right", no_wrap=True)
    for level in levels:
        shown.add_column(level, no_wrap=True)
    for _, group in groupby(rows, key=lambda row: (row.image_size, row.micro_batch)):
        lines: dict[tuple[int, ...], list[PlanRow]] = {}
        for _, of_precision in groupby(group, key=lambda row: row.precision):
            line = list(of_precision)
            lines.setdefault(tuple(row.peak_bytes for row in line), []).extend(line)
        for line in lines.values():
            precisions = ", ".join(dict.fromkeys(row.precision for row in line))
            first = line[0]
            cells = [_cell(row, digits) for row in line[: len(levels)]]
            shown.add_row(str(first.image_size), str(first.micro_batch), precisions, *cells)
    return shown


def _cell(row: PlanRow, digits: int) -> Text:
    return Text(f"{row.peak_bytes / GIB:4.{digits}f} {row.verdict}", style=VERDICT_STYLES[row.verdict])


def legend(budget_bytes: int) -> Text:
    """The meaning of the verdicts."""
    budget = format_bytes(budget_bytes)
    limit = format_bytes(budget_bytes - margin_of(budget_bytes))
    text = Text("GiB at the peak, of a budget of ").append(budget, style="bold").append(": ")
    text.append("fits", style=VERDICT_STYLES["fits"]).append(f" leaves {MARGIN_SHARE:.0%} free (up to {limit}), ")
    text.append("tight", style=VERDICT_STYLES["tight"]).append(" leaves less, ")
    return text.append("spills", style=VERDICT_STYLES["spills"]).append(" is too much")


def advice(recommended: Recommendation, budget_bytes: int, batch_size: int) -> RenderableType:
    """The recommendation in words, its bytes by component, and its keys of a configuration.

    ``batch_size`` is the effective batch over all devices.
    """
    free = format_bytes(budget_bytes - recommended.peak_bytes)
    need = f"{format_bytes(recommended.peak_bytes)} of {format_bytes(budget_bytes)}, {free} stay free"
    heading = Text("Recommended: ", style="bold").append(need, style="green")
    snippet = Padding(Text(config_snippet(recommended, batch_size), style="bold"), (0, 0, 0, 4), expand=False)
    parts: list[RenderableType] = [heading, Text(_in_words(recommended)), Text(), breakdown(recommended), Text()]
    return Group(*parts, Text("In the configuration:"), snippet)


def _in_words(recommended: Recommendation) -> str:
    split = "all images of a step at once"
    if recommended.accumulate > 1:
        split = f"{recommended.accumulate} micro-batches of {recommended.micro_batch} images make an exact step"
    level = f"recompute {recommended.recompute}"
    if recommended.recompute_layers:
        layers = ", ".join(map(str, recommended.recompute_layers))
        level += f" and block in layers {layers}"
    time = f"about {recommended.extra_time:+.0%} time compared with none" if recommended.extra_time else "no extra time"
    return f"{recommended.image_size} px, {recommended.precision}: {split}; {level} ({time})"


def breakdown(recommended: Recommendation) -> Table:
    """Bytes by component at the peak, largest first, with bars; the last line sums up the small ones."""
    total_bytes = recommended.peak_bytes
    held = sorted(recommended.components.items(), key=lambda item: item[1], reverse=True)
    small_bytes = sum(num_bytes for _, num_bytes in held if num_bytes < SMALLEST_SHOWN_BYTES)
    lines = [(*HELD[name], num_bytes) for name, num_bytes in held if num_bytes >= SMALLEST_SHOWN_BYTES]
    if small_bytes:
        lines.append(("everything else", "white", small_bytes))
    shown = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left"):
        shown.add_column(justify=justify, no_wrap=True)
    for name, color, num_bytes in lines:
        cells = BAR_CELLS * num_bytes / lines[0][2]
        bar = Text("█" * int(cells) + ("▌" if cells % 1 >= 0.5 or cells < 1 else ""), style=color)
        shown.add_row(name, f"{num_bytes / MIB:,.0f} MiB", f"{num_bytes / total_bytes:.1%}", bar)
    return shown


def config_snippet(recommended: Recommendation, batch_size: int) -> str:
    """The recommendation as keys of a configuration file; ``batch_size`` as for `advice`."""
    lines = [
        "data:",
        f"  batch_size: {batch_size}",
        f"  micro_batch_size: {recommended.micro_batch}",
        f"  image_size: {recommended.image_size}",
        "model:",
        f"  precision: {recommended.precision}",
        f"  recompute: {recommended.recompute}",
    ]
    if recommended.recompute_layers:
        layers = ", ".join(f"{layer}: {level}" for layer, level in recommended.layer_levels.items())
        lines.append(f"  recompute_layers: {{{layers}}}")
    return "\n".join(lines)
