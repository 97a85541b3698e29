"""The sections of docs/benchmarks.md about a GPU, and the sections about both GPU and CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from report_parts import COLORS, GIB, LEVELS, Report, Result, gib, missing, table, with_quartiles

RIVALS = ("ultralytics", *LEVELS)


def on_gpu(report: Report) -> str:
    """Memory and speed of a step on a GPU."""
    result = report.newest("gpu_steps")
    texts = (
        "GPU: peak at most 0.45 x Ultralytics' at no less than its speed",
        "GPU: 1.2 x Ultralytics' speed at no more than its memory",
        "GPU: 64 x 640 within 16 GiB",
    )
    if result is None:
        for text in texts:
            report.target("1", text, None)
        return missing("memory and speed on a GPU", "python benchmarks/gpu_steps.py")
    cells: dict[tuple, dict[str, dict]] = {}
    for row in result["rows"]:
        key = (row["image_size"], row["micro_batch"], row["precision"])
        cells.setdefault(key, {})[row["rival"]] = row
    _gpu_targets(report, texts, {key: cell for key, cell in cells.items() if key[2] == "fp16"})
    rows = []
    for (size, micro_batch, precision), cell in cells.items():
        base = cell.get("ultralytics")
        for rival, row in cell.items():
            ratios = [""] * 2
            if base is not None:
                ratios = [f"{row['peak_allocated_bytes'] / base['peak_allocated_bytes']:.2f}",
                          f"{row['images_per_second'] / base['images_per_second']:.2f}"]  # fmt: skip
            speed = [micro_batch / seconds for seconds in reversed(row["quartile_seconds"])]
            rows.append((
                f"{micro_batch} x {size} {precision}", f"`{rival}`" if rival in LEVELS else rival,
                gib(row["peak_allocated_bytes"]), gib(row["reserved_bytes"]), gib(row["used_bytes"]), ratios[0],
                with_quartiles(row["images_per_second"], speed, ".0f"), ratios[1],
            ))  # fmt: skip
    head = ("cell", "", "peak allocated", "reserved", "driver", "memory ratio", "images/s", "speed ratio")

    def draw(memory: Axes, speed: Axes) -> None:
        keys = sorted(key for key in cells if key[2] == "fp16" and key[0] == min(size for size, *_ in cells))
        for rival in ("ultralytics", *LEVELS):
            points = [(key[1], cells[key][rival]) for key in keys if rival in cells[key]]
            style = {"marker": "o", "markersize": 3, "label": rival, "color": COLORS[rival]}
            memory.plot([x for x, _ in points], [row["peak_allocated_bytes"] / GIB for _, row in points], **style)
            speed.plot([x for x, _ in points], [row["images_per_second"] for _, row in points], **style)
        memory.set(xlabel="micro-batch", ylabel="peak allocated, GiB", ylim=(0, None))
        speed.set(xlabel="micro-batch", ylabel="images/s", ylim=(0, None))
        memory.legend(fontsize=7)

    return f"{result.source()}\n\n{table(head, rows)}\n\n{report.plot('gpu_steps', draw, 2)}"


def _gpu_targets(report: Report, texts: Sequence[str], cells: dict[tuple, dict[str, dict]]) -> None:
    lean, fast = [], []  # by cell: least memory at Ultralytics' speed or more; most speed at its memory or less
    for cell in cells.values():
        theirs = cell["ultralytics"]
        ratios = [
            (cell[level]["peak_allocated_bytes"] / theirs["peak_allocated_bytes"],
             cell[level]["images_per_second"] / theirs["images_per_second"])
            for level in LEVELS if level in cell
        ]  # fmt: skip
        lean.append(min((memory for memory, speed in ratios if speed >= 1), default=math.inf))
        fast.append(max((speed for memory, speed in ratios if memory <= 1), default=0.0))
    num_lean, num_fast = sum(memory <= 0.45 for memory in lean), sum(speed >= 1.2 for speed in fast)
    for text, num_met, values in ((texts[0], num_lean, lean), (texts[1], num_fast, fast)):
        measured = f"{num_met} of {len(cells)} cells ({min(values):.2f} to {max(values):.2f})"
        report.target("1", text, measured, num_met / len(cells))
    large = [row["used_bytes"] for key, cell in cells.items() if key[:2] == (640, 64)
             for level, row in cell.items() if level in LEVELS]  # fmt: skip
    report.target("1", texts[2], gib(min(large)) if large else None, bool(large) and min(large) <= 16 * GIB)


def budget(report: Report) -> str:
    """Trainings of the popular 16 GB table within 16 GiB."""
    result = report.newest("gpu_budget")
    text = "GPU: all four rows of the popular 16 GB table train within 16 GiB"
    if result is None:
        report.target("1", text, None)
        return missing("training within 16 GiB", "python benchmarks/gpu_budget.py")
    rows, num_green = [], 0
    for row in result["rows"]:
        is_green = row["exit_status"] == 0
        num_green += is_green and row["micro_batch"] != "auto"
        planned = row.get("planned", {})
        rows.append((
            f"{row['micro_batch']} x {row['image_size']}", "trained" if is_green else f"status {row['exit_status']}",
            planned.get("recompute", "-"), *(gib(size) if size else "-" for size in (
                planned.get("peak_bytes"), row.get("peak_allocated_mib", 0) * 2**20,
                row.get("peak_reserved_mib", 0) * 2**20,
            )), row.get("recoveries", "-"),
        ))  # fmt: skip
    report.target("1", text, f"{num_green} of 4", num_green == 4)
    head = ("micro-batch x size", "", "recompute", "planned", "allocated", "reserved", "recoveries")
    return f"{result.source()}\n\n{table(head, rows, num_text=3)}"


def kernels(report: Report) -> str:
    """BatchNorm and SiLU by implementation."""
    parts = [_copies(copies)] if (copies := report.newest("gpu_copies")) else []
    parts += [_profile(profile)] if (profile := report.newest("gpu_profile")) else []
    result = report.newest("gpu_kernels")
    if result is None:
        missed = missing("BatchNorm and SiLU beside torch.compile on a GPU", "python benchmarks/gpu_kernels.py")
        return "\n\n".join([*parts, missed])
    names = ("floor", "fused", "pytorch", "torch.compile")
    rows = [
        (shape, phase, *(f"{times[name]:.0f}" if name in times else "-" for name in names))
        for shape, phases in result["microseconds"].items()
        for phase, times in phases.items()
    ]
    return "\n\n".join([*parts, result.source(), table(("map", "phase", *names), rows)])


def _copies(result: Result) -> str:
    rows = [
        (shape, operation, f"{times['copy']:.0f}", f"{times[operation]['fused']:.0f}",
         f"{times[operation]['pytorch']:.0f}", f"{times[operation]['fused'] / times[operation]['pytorch']:.2f}")
        for shape, times in result["microseconds"].items()
        for operation in times
        if operation != "copy"
    ]  # fmt: skip
    return f"{result.source()}\n\n{table(('map', '', 'a copy', 'fused', 'pytorch', 'ratio'), rows, num_text=2)}"


def _profile(result: Result) -> str:
    rows = [
        (case, kind, f"{milliseconds:.1f}")
        for case, kinds in result["milliseconds"].items()
        for kind, milliseconds in kinds.items()
    ]
    return f"{result.source()}\n\n{table(('step', 'kernels', 'ms'), rows, num_text=2)}"


def precision_on_gpu(report: Report) -> str:
    """What fp16 and bf16 save against fp32, and how much faster they are."""
    results = [found for name in ("gpu_precision", "gpu_steps") if (found := report.newest(name))]
    result = next((found for found in results if any(row["precision"] == "fp32" for row in found["rows"])), None)
    if result is None:
        return missing("fp16 and bf16 against fp32 on a GPU", "python benchmarks/gpu_steps.py --cells 16x640")
    rows = []
    for base in (row for row in result["rows"] if row["precision"] == "fp32"):
        cell = ("image_size", "micro_batch", "rival")
        for row in result["rows"]:
            if [row[key] for key in cell] == [base[key] for key in cell]:
                rows.append((
                    f"{row['micro_batch']} x {row['image_size']}, {_name(row['rival'])}", row["precision"],
                    gib(row["peak_allocated_bytes"]), f"{row['images_per_second']:.0f}",
                    f"{row['peak_allocated_bytes'] / base['peak_allocated_bytes']:.2f}",
                    f"{row['images_per_second'] / base['images_per_second']:.2f}",
                ))  # fmt: skip
    head = ("cell", "precision", "peak allocated", "images/s", "memory, fp32 = 1", "speed, fp32 = 1")
    return f"{result.source()}\n\n{table(head, rows, num_text=2)}"


def compiled(report: Report) -> str:
    """TorchInductor against the same networks without it."""
    ours, result = report.newest("gpu_compile"), report.newest("gpu_compiled")
    parts = [_ours_compiled(ours)] if ours else []
    if result is None:
        missed = missing("Ultralytics' `compile=True` on a GPU", "python benchmarks/gpu_steps.py --compiled")
        return "\n\n".join([*parts, missed])
    cells: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        cells.setdefault((row["micro_batch"], row["image_size"]), {})[row["rival"]] = row
    rows = [
        (f"{micro_batch} x {size}", _name(rival), f"{row['first_steps_seconds']:.1f}", gib(row["peak_allocated_bytes"]),
         f"{row['images_per_second']:.0f}",
         f"{row['peak_allocated_bytes'] / cell['ultralytics']['peak_allocated_bytes']:.2f}",
         f"{row['images_per_second'] / cell['ultralytics']['images_per_second']:.2f}")
        for (micro_batch, size), cell in cells.items()
        for rival, row in cell.items()
    ]  # fmt: skip
    head = ("cell", "", "first steps, s", "peak allocated", "images/s", "memory ratio", "speed ratio")
    note = "Ratios are to Ultralytics' default step, which is not compiled. The first steps include compilation."
    return "\n\n".join([*parts, result.source(), table(head, rows, num_text=2), note])


def _ours_compiled(result: Result) -> str:
    rows = [
        (_name(row["rival"]), f"{row['first_step_seconds']:.0f}", f"{1000 * row['median_seconds']:.1f}",
         f"{row['images_per_second']:.0f}", f"{row['peak_reserved_gib']:.2f} GiB")
        for row in result["rows"]
    ]  # fmt: skip
    head = ("our step with", "first step, s", "a step, ms", "images/s", "reserved at the peak")
    return f"{result.source()}\n\n{table(head, rows)}"


def cards(report: Report) -> str:
    """How many images train at once on cards of several sizes."""
    results = [found for name in ("gpu_caps", "gpu_caps_800") if (found := report.newest(name))]
    texts = ("GPU: 64 x 640 trains on a card of 16 GiB, tried under a cap",
             "the plan chooses no micro-batch that does not train, on cards of 8 to 24 GiB")  # fmt: skip
    if not results:
        for number, text in zip("13", texts, strict=True):
            report.target(number, text, None)
        return missing("the largest micro-batch on a card", "python benchmarks/gpu_caps.py")
    found = {(row["image_size"], row["card_gib"], row["rival"]): row for result in results for row in result["rows"]}
    _card_targets(report, texts, found)
    rows = [
        (f"{card} GiB, {size} px", *(_tried_and_planned(found.get((size, card, rival))) for rival in RIVALS))
        for size, card in sorted({key[:2] for key in found})
    ]
    failed = [name for result in results for name in result["failed"]]
    note = (
        "The brackets have the micro-batch of the plan, which runs nothing: first with the margin, as `engine.fit` "
        "chooses, then without it. For Ultralytics it is the plan of `none`, which keeps the same tensors."
    )
    parts = [*(result.source() for result in results), table(("card", *map(_name, RIVALS)), rows), note]
    return "\n\n".join(parts + [f"Failed: {', '.join(failed)}."] * bool(failed))


def _tried_and_planned(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return f"{row['micro_batch']} ({row['planned_micro_batch']}, {row['planned_without_margin']})"


def _card_targets(report: Report, texts: Sequence[str], found: dict[tuple, dict[str, Any]]) -> None:
    most = max((row["micro_batch"] for (size, card, rival), row in found.items()
                if (size, card) == (640, 16) and rival in LEVELS), default=None)  # fmt: skip
    report.target("1", texts[0], most and f"up to {most}", (most or 0) >= 64)
    ours = [row for (*_, rival), row in found.items() if rival in LEVELS]
    num_kept = sum(row["planned_micro_batch"] <= row["micro_batch"] for row in ours)
    report.target("3", texts[1], f"{num_kept} of {len(ours)}" if ours else None, num_kept / max(len(ours), 1))


def autobatch(report: Report) -> str:
    """Memory that Ultralytics' AutoBatch expects and that its batch takes, and the plan for the same batch."""
    result = report.newest("gpu_autobatch")
    text = "the plan errs less than AutoBatch, for the batches that AutoBatch chooses"
    if result is None or not result["rows"]:
        report.target("3", text, None)
        return missing("Ultralytics' AutoBatch", "python benchmarks/autobatch.py")
    rows, theirs, ours = [], [], []
    for row in result["rows"]:
        expected = row["expected_bytes"] or row["aim_bytes"]
        taken, taken_by_us = (row[rival]["peak_reserved_bytes"] for rival in ("ultralytics", "none"))
        theirs.append(expected / taken - 1)
        ours.append(row["planned_bytes"] / taken_by_us - 1)
        rows.append((
            f"{row['card_gib']} GiB, {row['fraction']:.0%}", row["batch"], gib(row["aim_bytes"]), gib(expected),
            gib(taken), f"{theirs[-1]:+.1%}", "yes" if row["fits_card"] else "no", gib(row["planned_bytes"]),
            gib(taken_by_us), f"{ours[-1]:+.1%}",
        ))  # fmt: skip
    worst = [max(map(abs, errors)) for errors in (ours, theirs)]
    report.target("3", text, f"worst {worst[0]:.1%}, AutoBatch {worst[1]:.1%}", worst[0] < worst[1])
    head = ("card, share to use", "batch", "aim", "AutoBatch expects", "measured", "error", "fits the card",
            "plan of `none`", "measured", "error")  # fmt: skip
    return f"{result.source()}\n\n{table(head, rows)}"


def engine(report: Report) -> str:
    """Time that Lightning and the engine add to a step, and the distance of its parts from the machine's limits."""
    parts = []
    for name, where, base in (("gpu_overhead", "GPU", "step"), ("overhead_cpu", "CPU", "bare")):
        against = "a step alone" if base == "step" else "a bare loop"
        text = f"{where}: the engine costs at most 3 % over {against}"
        if (result := report.newest(name)) is None:
            report.target("2", text, None)
            parts.append(missing(f"the engine's cost on a {where}", "python benchmarks/overhead.py"))
            continue
        median = result["median_seconds"]
        ratio = median["engine"] / median[base] if base == "step" else result["median_ratio_to_bare"]["engine"]
        rows = [
            (case, f"{seconds:.4f}", f"{result['median_ratio_to_bare'][case]:.3f}") for case, seconds in median.items()
        ]
        report.target("2", text, f"{ratio - 1:.1%}", ratio <= 1.03)
        parts.append(f"{result.source()}\n\n{table(('', 'seconds a step', 'bare loop = 1'), rows)}")
    for name in ("gpu_roofline", "roofline_cpu"):
        result = report.newest(name)
        parts.append(_roofline(result) if result else missing(name.replace("_", " "), "python benchmarks/roofline.py"))
    return "\n\n".join(parts)


def _roofline(result: Result) -> str:
    rows = [
        (name, f"{part['gflop']:.0f}", f"{part['least_gb']:.2f}", f"{1000 * part['floor_seconds']:.2f}",
         f"{1000 * part['seconds']:.2f}", f"{part['ratio']:.1f}" if part.get("ratio") else "-")
        for name, part in result["parts"].items()
    ]  # fmt: skip
    step, ceilings = result["step"], result["ceilings"]
    floor, seconds = (f"{1000 * step[key]:.2f}" for key in ("floor_seconds", "seconds"))
    rows.append(("the whole step", "", "", floor, seconds, f"{step['ratio']:.1f}"))
    note = (
        f"Ceilings: {ceilings['gemm_gflop_per_second'] / 1000:,.2f} TFLOP/s of a large matrix product, "
        f"{ceilings['copy_gb_per_second']:,.0f} GB/s of a large copy."
    )
    head = ("part", "GFLOP", "least GB", "floor, ms", "measured, ms", "ratio")
    return f"{result.source()}\n\n{table(head, rows)}\n\n{note}"


def _name(rival: str) -> str:
    """Markdown of a rival: the recompute level as code, everything else as words."""
    level, _, rest = rival.partition(" ")
    return f"`{level}` {rest}".rstrip() if level in LEVELS else rival
