"""The sections of docs/benchmarks.md: functions from results to Markdown, which note their targets on the way.

Nothing in them is typed in by hand, and what has no result says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes

if TYPE_CHECKING:
    from report import Report, Result

GIB = 2**30
LEVELS = ("none", "elementwise", "block")
SIDES = ("ultralytics", "yolofit")
AXES = ("micro_batch", "image_size", "boxes_per_image")
COLOURS = {
    "yolofit": "#0969da", "ultralytics": "#bc4c00", "none": "#0969da", "elementwise": "#1a7f37", "block": "#8250df",
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], num_text: int = 1) -> str:
    """A Markdown table: the first columns to the left, the others to the right."""
    marks = ["---"] * num_text + ["---:"] * (len(head) - num_text)
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, marks, *rows])


def with_quartiles(value: float, quartiles: Sequence[float], form: str = ".3f") -> str:
    """A median and, in brackets, its quartiles."""
    return f"{value:{form}} ({quartiles[0]:{form}} to {quartiles[1]:{form}})"


def gib(num_bytes: float) -> str:
    """Bytes in GiB, or in MiB or KiB where there are few."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"


def missing(what: str, program: str) -> str:
    """What a section says without a result."""
    return f"Not measured yet: {what}. `{program}` does."


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
        keys = [key for key in cells if key[2] == "fp16" and key[0] == min(size for size, *_ in cells)]
        for rival in ("ultralytics", *LEVELS):
            points = [(key[1], cells[key][rival]) for key in keys if rival in cells[key]]
            style = {"marker": "o", "markersize": 3, "label": rival, "color": COLOURS[rival]}
            memory.plot([x for x, _ in points], [row["peak_allocated_bytes"] / GIB for _, row in points], **style)
            speed.plot([x for x, _ in points], [row["images_per_second"] for _, row in points], **style)
        memory.set(xlabel="micro-batch", ylabel="peak allocated, GiB", ylim=(0, None))
        speed.set(xlabel="micro-batch", ylabel="images/s", ylim=(0, None))
        memory.legend(fontsize=7)

    return f"{result.source()}\n\n{table(head, rows)}\n\n{report.plot('gpu_steps', draw, 2)}"


def _gpu_targets(report: Report, texts: Sequence[str], cells: dict[tuple, dict[str, dict]]) -> None:
    lean, fast = [], []  # in each cell, the least memory at no less speed, and the most speed at no more memory
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
    """Runs within 16 GiB."""
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
    result = report.newest("gpu_kernels")
    if result is None:
        return missing("kernels on a GPU", "python benchmarks/gpu_kernels.py")
    names = ("floor", "fused", "pytorch", "torch.compile")
    rows = [
        (shape, phase, *(f"{times[name]:.0f}" if name in times else "-" for name in names))
        for shape, phases in result["microseconds"].items()
        for phase, times in phases.items()
    ]
    return f"{result.source()}\n\n{table(('map', 'phase', *names), rows)}"


def _step_on_cpu(report: Report, step: Result, name: str) -> str:
    """Table and plot of one result of ``step_time.py``."""
    base = "ultralytics"
    rows = [
        (name, gib(peak), with_quartiles(step["median_seconds"][name], step["quartile_seconds"][name]),
         with_quartiles(step[f"median_ratio_to_{base}"][name], step[f"quartile_ratio_to_{base}"][name], ".2f"))
        for name, peak in step["peak_bytes"].items()
    ]  # fmt: skip
    head = ("", "peak of tensors", "seconds a step", "time, Ultralytics = 1")

    def draw(memory: Axes, time: Axes) -> None:
        names = list(reversed(step["peak_bytes"]))
        colours = [COLOURS[name.partition(",")[0]] for name in names]
        memory.barh(names, [step["peak_bytes"][name] / 2**20 for name in names], color=colours)
        time.barh(names, [step["median_seconds"][name] for name in names], color=colours)
        memory.set(xlabel="peak of tensors, MiB")
        memory.tick_params(axis="y", labelsize=7)
        time.set(xlabel="seconds a step", yticks=[])

    return f"{step.source()}\n\n{table(head, rows)}\n\n{report.plot(name, draw, 2)}"


def on_cpu(report: Report) -> str:
    """Memory, time and overhead of a step on a CPU."""
    parts = []
    found = (report.newest(name) for name in ("step_time_cpu", "step_time_threads_cpu"))
    steps = [step for step in found if step]
    parts += [_step_on_cpu(report, step, f"step_cpu_{number}") for number, step in enumerate(steps, 1)]
    if steps:
        ratios = [
            step["median_seconds"]["yolofit, elementwise, channels_last"]
            / step["median_seconds"]["yolofit, none, channels_last"]
            for step in steps
        ]
        text = "CPU: a step with `elementwise` takes at most 1.10 x one with `none`, as trained (channels_last)"
        measured = ", ".join(
            f"{ratio:.3f} ({step['machine']['threads']} CPU threads)" for ratio, step in zip(ratios, steps, strict=True)
        )
        report.target("2", text, measured, max(ratios) <= 1.1)
    if overhead := report.newest("overhead_cpu"):
        rows = [
            (name, f"{seconds:.4f}", f"{overhead['median_ratio_to_bare'][name]:.3f}")
            for name, seconds in overhead["median_seconds"].items()
        ]
        parts.append(f"{overhead.source()}\n\n{table(('', 'seconds a step', 'bare loop = 1'), rows)}")
        ratio = overhead["median_ratio_to_bare"]["engine"]
        text = "CPU: the engine costs at most 3 % over a bare loop"
        report.target("2", text, f"{ratio - 1:.1%}", ratio <= 1.03)
    return "\n\n".join(parts) or missing("a step on a CPU", "python benchmarks/step_time.py")


def plan(report: Report) -> str:
    """The plan against measurement."""
    result, on_a_gpu = report.newest("plan_error"), report.newest("plan_error_gpu")
    about = {
        "simulated": "simulated against a real step on a CPU",
        "between": "read off a straight line against simulated",
        "allocated": "plan against torch's allocated bytes on a GPU",
        "gpu": "plan against the driver on a GPU",
    }
    found = (result.content if result else {}) | (on_a_gpu.content if on_a_gpu else {})
    kinds = [kind for kind in about if kind in found]
    if not kinds:
        report.target("3", "the plan is within 3 % of what torch allocates on a GPU", None)
        return missing("the plan's error", "python benchmarks/plan_error.py")
    errors = {kind: [row["relative_error"] for row in found[kind]] for kind in kinds}
    rows = [
        (about[kind], len(values), f"{min(values):+.2%}", f"{sorted(values)[len(values) // 2]:+.2%}",
         f"{max(values):+.2%}")
        for kind, values in errors.items()
    ]  # fmt: skip
    for kind, limit, text in (
        ("allocated", 0.03, "the plan is within 3 % of what torch allocates on a GPU, over at least 12 cells"),
        ("gpu", 0.08, "the plan is within 8 % of what the driver reports, over at least 12 cells"),
    ):
        worst = max(map(abs, errors[kind])) if kind in errors else None
        is_met = worst is not None and worst <= limit and len(errors[kind]) >= 12
        report.target("3", text, None if worst is None else f"worst {worst:.1%} of {len(errors[kind])}", is_met)

    def draw(*axes: Axes) -> None:
        for each, kind in zip(axes, kinds, strict=True):
            each.hist([100 * error for error in errors[kind]], bins=15, color=COLOURS["yolofit"])
            each.set_title(about[kind], fontsize=7)
            each.set(xlabel="error, %", ylabel="cells")

    head = ("", "cells", "least", "median", "greatest")
    autobatch = "Not measured yet: Ultralytics' AutoBatch, which fits its line to measurements on a GPU."
    picture = report.plot("plan_error", draw, len(kinds))
    sources = "\n\n".join(each.source() for each in (result, on_a_gpu) if each)
    return f"{sources}\n\n{table(head, rows)}\n\n{picture}\n\n{autobatch}"


def precision(report: Report) -> str:
    """What rounding costs the box loss."""
    saving = "Saving and speed-up of fp16 and bf16 on a GPU are rows of the first table."
    result = report.newest("box_precision_cpu")
    if result is None:
        return missing("the box loss in each precision", "python benchmarks/box_precision.py")
    rows = [
        (f"{row['image_size']}, {row['precision']}", *(with_quartiles(row[name], row[f"{name}_quartiles"], ".1e")
         for name in ("ultralytics", "yolofit")))
        for row in result["rows"]
    ]  # fmt: skip
    better = all(row["yolofit"] <= row["ultralytics"] for row in result["rows"])
    half = [row for row in result["rows"] if row["precision"] != "fp32"]
    ratio = min(row["ultralytics"] / row["yolofit"] for row in half)
    text = "box loss of all but perfect boxes not above Ultralytics' in any precision"
    report.target("4", text, f"in half precision at most 1/{ratio:.0f} of it", better)

    def draw(axes: Axes) -> None:
        names = [f"{row['image_size']}\n{row['precision']}" for row in result["rows"]]
        for shift, name in ((-0.2, "ultralytics"), (0.2, "yolofit")):
            places = [i + shift for i in range(len(names))]
            axes.bar(places, [row[name] for row in result["rows"]], 0.4, label=name, color=COLOURS[name])
        axes.set_xticks(range(len(names)), names, fontsize=6)
        axes.set(yscale="log", ylabel="1 - CIoU")
        axes.legend(fontsize=7)

    head = ("image size, precision", "Ultralytics", "yolofit")
    return f"{result.source()}\n\n{table(head, rows)}\n\n{report.plot('box_precision', draw)}\n\n{saving}"


def accumulation(report: Report) -> str:
    """Error of the accumulated gradient."""
    result = report.newest("accumulation_cpu")
    if result is None:
        return missing("accumulation", "python benchmarks/accumulation.py")
    rows = [
        (f"{data}, {row['accumulate']} x {row['micro_batch']}",
         with_quartiles(row["ultralytics"], row["ultralytics_quartiles"], ".1%"),
         with_quartiles(row["yolofit"], row["yolofit_quartiles"], ".0e"))
        for data, found in result["data"].items()
        for row in found["rows"]
    ]  # fmt: skip
    worst = max(row["yolofit"] for found in result["data"].values() for row in found["rows"])
    report.target("5", "accumulated gradient exact up to fp32's rounding (1e-4)", f"{worst:.0e}", worst <= 1e-4)

    def draw(*axes: Axes) -> None:
        for each, (data, found) in zip(axes, result["data"].items(), strict=True):
            names = [f"{row['accumulate']} x {row['micro_batch']}" for row in found["rows"]]
            for side in ("ultralytics", "yolofit"):
                values = [row[side] for row in found["rows"]]
                each.plot(names, values, "o-", markersize=3, label=side, color=COLOURS[side])
            each.set(yscale="log", ylabel="relative error")
            each.set_title(data, fontsize=8)
            each.legend(fontsize=7)

    apart = max(found["whole_gradients_apart"] for found in result["data"].values())
    note = f"Of 16 pictures at once the two gradients are at most {apart:.0e} apart."
    picture = report.plot("accumulation", draw, len(result["data"]))
    head = ("data, micro-batches", "Ultralytics", "yolofit")
    return f"{result.source()}\n\n{table(head, rows)}\n\n{picture}\n\n{note}"


def loader(report: Report) -> str:
    """Images a second of the loader."""
    result = report.newest("loader")
    texts = (("disk", "loader from disk at least 2 x Ultralytics' per core", 2.0),
             ("ram", "loader from RAM at least 3 x Ultralytics' per core", 3.0))  # fmt: skip
    if result is None:
        for _, text, _ in texts:
            report.target("6", text, None)
        return missing("the loader", "python benchmarks/loader.py")
    rows = []
    for case, found in result["results"].items():
        speeds = {key.partition("_")[0]: value for key, value in found.items() if key.endswith("per_second")}
        low, high = found["ratio_range"]
        ratio = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
        rows.append((case.replace("_", " "), f"{speeds['ultralytics']:.0f}", f"{speeds['ours']:.0f}", ratio))
    for case, text, least in texts:
        if case in result["results"]:
            ratio = result["results"][case]["ratio"]
            report.target("6", text, f"{ratio:.2f} x", ratio >= least)
    head = ("", "Ultralytics, images/s", "yolofit, images/s", "ratio (range of rounds)")
    return f"{result.source()}\n\n{table(head, rows)}"


def loader_workers(report: Report) -> str:
    """Images a second and RAM with several worker processes."""
    result = report.newest("loader_workers")
    if result is None:
        return missing("the loader with several workers", "python benchmarks/loader_workers.py")
    cells = {(row["workers"], row["side"]): row for row in result["rows"]}
    rows = []
    for workers in dict.fromkeys(workers for workers, _ in cells):
        for source in ("disk", "ram"):
            pair = [cells[workers, f"{side}_{source}"] for side in ("ultralytics", "ours")]
            speeds = [with_quartiles(row["images_per_second"], row["quartiles"], ".0f") for row in pair]
            ratio = pair[1]["images_per_second"] / pair[0]["images_per_second"]
            ram = (gib(row["ram_bytes"]) for row in pair)
            rows.append((f"{workers} workers, {source}", *speeds, f"{ratio:.2f}", *ram))
    head = ("", "Ultralytics, images/s", "yolofit, images/s", "ratio", "Ultralytics, RAM", "yolofit, RAM")
    return f"{result.source()}\n\n{table(head, rows)}"


def fidelity(report: Report) -> str:
    """Trained by both: what the networks are worth."""
    results = [found for name in ("gpu_fidelity", "fidelity_cpu") if (found := report.newest(name))]
    parts = [_fidelity(report, result) for result in results]
    if not results:
        report.target("7", "mAP50-95 not below Ultralytics' mean", None)
        parts.append(missing("training by both", "python benchmarks/fidelity.py"))
    if plain := report.newest("fidelity_plain_cpu"):
        parts.append(_same_course(report, plain))
    return "\n\n".join(parts)


def _same_course(report: Report, result: Result) -> str:
    """How far the losses of the two trainers are apart where nothing is left to chance."""
    curves = {run["trainer"]: run["curves"] for run in result["runs"]}
    names = ("box_loss", "cls_loss", "dfl_loss", "val_box_loss", "val_dfl_loss")
    apart = {
        name: [abs(ours / theirs - 1) for ours, theirs in zip(*(curves[side][name] for side in SIDES), strict=True)]
        for name in names
    }
    epochs = range(1, len(apart["box_loss"]) + 1)
    rows = [(name.replace("_", " "), *(f"{value:.0e}" for value in values)) for name, values in apart.items()]
    worst = max(values[2] for values in apart.values())
    report.target("7", "without chance, losses equal to 1e-4 for three steps", f"{worst:.0e}", worst <= 1e-4)
    note = "Relative difference of the losses by epoch, of one step each, where nothing is left to chance:"
    return f"{result.source()}\n\n{note}\n\n{table(('', *epochs), rows)}"


def _fidelity(report: Report, result: Result) -> str:
    rows = []
    for case, found in result["summary"].items():
        sides = [f"{found[side]['mean']:.4f} ± {found[side]['standard_deviation'] or 0:.4f}"
                 for side in ("ultralytics", "yolofit") if found[side]["mean"] is not None]  # fmt: skip
        if len(sides) < 2:
            continue
        gap = found["gap"]
        rows.append((case, len(gap["values"]), *sides, f"{gap['mean']:+.4f} ± {gap['standard_deviation'] or 0:.4f}"))
        if "last epoch, validated by yolofit" in case:
            data = case.partition(",")[0]
            where = "GPU" if "gpu" in result["machine"] else "CPU"
            text = f"{where}, {data}: mAP50-95 not below Ultralytics' mean"
            difference = found["yolofit"]["mean"] - found["ultralytics"]["mean"]
            report.target("7", text, f"{found['yolofit']['mean']:.4f}, {difference:+.4f}", difference >= 0)
    head = ("mAP50-95 (mean ± standard deviation over seeds)", "seeds", "Ultralytics", "yolofit", "gap by seed")
    pictures = []
    for data in sorted({run["data"] for run in result["runs"]}):

        def draw(*axes: Axes, data: str = data) -> None:
            curves = ("box_loss", "cls_loss", "dfl_loss", "val_map50_95")
            for each, curve in zip(axes, curves, strict=True):
                for run in result["runs"]:
                    if run["data"] == data:
                        values = run["curves"][curve]
                        each.plot(range(1, len(values) + 1), values, color=COLOURS[run["trainer"]], linewidth=0.8)
                each.set_title(curve.replace("_", " "), fontsize=8)
                each.set(xlabel="epoch")
            for trainer in ("yolofit", "ultralytics"):
                axes[0].plot([], [], color=COLOURS[trainer], label=trainer)
            axes[0].legend(fontsize=7)

        pictures.append(report.plot(f"{result.path.stem.partition('_2')[0]}_{data}", draw, 4))
    failed = f"\n\nFailed: {', '.join(result['failed'])}." if result["failed"] else ""
    note = "Curves: losses in training, and mAP50-95 as each trainer's own validator saw it."
    pictures_text = "\n\n".join(pictures)
    return f"{result.source()}\n\n{table(head, rows)}{failed}\n\n{pictures_text}\n\n{note}"


def growth(report: Report) -> str:
    """How memory and time grow."""
    result = report.newest("growth_cpu")
    if result is None:
        return missing("growth", "python benchmarks/growth.py")
    parts = [result.source(), *_simulated_growth(result["memory"]), *_measured_growth(report, result["step"])]
    if index := report.newest("index_scale"):
        rows = [
            (f"{row['num_images']:,} images", f"{row['array_gib']} GiB", f"{row['load_and_check_seconds']} s",
             f"{row['read_microseconds_per_image']} µs", f"{row['own_memory_mib_after_reading']} MiB")
            for row in index["synthetic"]
        ]  # fmt: skip
        head = ("data set", "index", "to map and check", "to read an image's labels", "own memory of a process")
        parts += [index.source(), table(head, rows)]
    return "\n\n".join(parts)


def _simulated_growth(memory: dict[str, Any]) -> list[str]:
    rows = []
    for axis in AXES:
        found, is_straight = memory[axis], axis != "image_size"
        line = [gib(found[key]) if is_straight else "-" for key in ("fixed", "per_unit")]
        span = f"{found['values'][0]} to {found['values'][-1]}"
        rows.append((axis.replace("_", " "), span, f"{found['exponent']:.2f}", *line))
    networks = [(name, *(gib(peaks[level]) for level in LEVELS)) for name, peaks in memory["network"].items()]
    levels = [f"`{level}`" for level in LEVELS]
    return [
        table(("peak of YOLO11l, fp16, simulated", "range", "exponent", "fixed", "each"), rows),
        table(("peak at 16 x 640, fp16, simulated", *levels), networks),
    ]


def _measured_growth(report: Report, step: dict[str, Any]) -> list[str]:
    fits = [(kind, side) for kind in ("seconds_fit", "peak_bytes_fit") for side in SIDES]
    rows = [
        (axis.replace("_", " "), f"{step[axis]['values'][0]} to {step[axis]['values'][-1]}",
         *(f"{step[axis][side][kind]['exponent']:.2f}" for kind, side in fits))
        for axis in AXES
    ]  # fmt: skip
    head = ("exponents of yolo11n, fp32, one CPU thread", "range", "time, Ultralytics", "time, yolofit",
            "memory, Ultralytics", "memory, yolofit")  # fmt: skip
    on_a_cpu = table(head, rows)
    rows = [
        (name, *(f"{step['network'][side]['seconds'][i]:.3f}" for side in SIDES),
         *(gib(step["network"][side]["peak_bytes"][i]) for side in SIDES))
        for i, name in enumerate(step["network"]["values"])
    ]  # fmt: skip
    head = ("network, fp32, one CPU thread", "seconds, Ultralytics", "seconds, yolofit", "peak, Ultralytics",
            "peak, yolofit")  # fmt: skip
    by_network = table(head, rows)

    def draw(*pictures: Axes) -> None:
        for each, axis in zip(pictures, AXES, strict=True):
            for side in SIDES:
                seconds = step[axis][side]["seconds"]
                each.plot(step[axis]["values"], seconds, "o-", markersize=3, label=side, color=COLOURS[side])
            each.set(xlabel=axis.replace("_", " "), ylabel="seconds a step", ylim=(0, None))
        pictures[0].legend(fontsize=7)

    return [on_a_cpu, by_network, report.plot("growth", draw, 3)]


def validation(report: Report) -> str:
    """NMS and metrics."""
    result = report.newest("validation_time_cpu") or report.newest("validation_time")
    if result is None:
        return missing("validation", "python benchmarks/validation_time.py")
    cases = {case: found for case, found in result.content.items() if isinstance(found, dict) and case != "machine"}
    rows = [
        (case, part, *(f"{found[side][part]:.2f}" for side in ("ultralytics", "yolofit")),
         f"{found['median_ratio_to_ultralytics'][part]:.2f}")
        for case, found in cases.items()
        for part in ("nms", "match", "both")
    ]  # fmt: skip
    ratios = [found["median_ratio_to_ultralytics"]["both"] for found in cases.values()]
    text = "NMS and mAP take no longer than Ultralytics'"
    report.target("9", text, f"{min(ratios):.2f} to {max(ratios):.2f} x", max(ratios) <= 1)
    head = ("", "", "Ultralytics, s", "yolofit, s", "ratio")
    return f"{result.source()}\n\n{table(head, rows)}"


SECTIONS: dict[str, Callable[[Report], str]] = {
    "1. Memory and speed on a GPU": on_gpu,
    "1. Training within 16 GiB": budget,
    "1. Kernels on a GPU": kernels,
    "2. Memory and speed on a CPU": on_cpu,
    "3. Plan against measurement": plan,
    "4. Precision": precision,
    "5. Accumulation": accumulation,
    "6. Loader": loader,
    "6. Loader with several workers": loader_workers,
    "7. Fidelity": fidelity,
    "8. Growth": growth,
    "9. Validation": validation,
}
