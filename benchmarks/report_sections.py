"""The sections of docs/benchmarks.md: functions that turn results into Markdown and note their targets.

All figures come from result files. A section without a result says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from report_architectures import architectures
from report_fidelity import fidelity
from report_gpu import autobatch, budget, cards, compiled, engine, kernels, on_gpu, precision_on_gpu
from report_parts import COLORS, LEVELS, SIDES, Report, Result, gib, missing, table, with_quartiles

AXES = ("micro_batch", "image_size", "boxes_per_image")


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
        colors = [COLORS[name.partition(",")[0]] for name in names]
        memory.barh(names, [step["peak_bytes"][name] / 2**20 for name in names], color=colors)
        time.barh(names, [step["median_seconds"][name] for name in names], color=colors)
        memory.set(xlabel="peak of tensors, MiB")
        memory.tick_params(axis="y", labelsize=7)
        time.set(xlabel="seconds a step", yticks=[])

    return f"{step.source()}\n\n{table(head, rows)}\n\n{report.plot(name, draw, 2)}"


def on_cpu(report: Report) -> str:
    """Memory and time of a step on a CPU."""
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
    return "\n\n".join(parts) or missing("a step on a CPU", "python benchmarks/step_time.py")


def plan(report: Report) -> str:
    """The plan against measurement."""
    result, on_a_gpu = report.newest("plan_error"), report.newest("plan_error_gpu")
    about = {
        "simulated": "simulation against a real step on a CPU",
        "between": "interpolation between simulations against a simulation",
        "allocated": "plan against torch's allocated bytes on a GPU",
        "gpu": "plan against the driver on a GPU",
    }
    found = (result.content if result else {}) | (on_a_gpu.content if on_a_gpu else {})
    kinds = [kind for kind in about if kind in found]
    if not kinds:
        report.target("3", "the plan is within 3 % of what torch allocates on a GPU", None)
        no_plan = missing("the plan's error", "python benchmarks/plan_error.py")
        return f"{no_plan}\n\n{autobatch(report)}"
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
            each.hist([100 * error for error in errors[kind]], bins=15, color=COLORS["yolofit"])
            each.set_title(about[kind], fontsize=7)
            each.set(xlabel="error, %", ylabel="cells")

    head = ("", "cells", "least", "median", "greatest")
    picture = report.plot("plan_error", draw, len(kinds))
    sources = "\n\n".join(each.source() for each in (result, on_a_gpu) if each)
    return f"{sources}\n\n{table(head, rows)}\n\n{picture}\n\n{autobatch(report)}"


def precision(report: Report) -> str:
    """The error that rounding adds to the box loss."""
    saving, result = precision_on_gpu(report), report.newest("box_precision_cpu")
    if result is None:
        return f"{missing('the box loss in each precision', 'python benchmarks/box_precision.py')}\n\n{saving}"
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
            axes.bar(places, [row[name] for row in result["rows"]], 0.4, label=name, color=COLORS[name])
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
                each.plot(names, values, "o-", markersize=3, label=side, color=COLORS[side])
            each.set(yscale="log", ylabel="relative error")
            each.set_title(data, fontsize=8)
            each.legend(fontsize=7)

    apart = max(found["whole_gradients_apart"] for found in result["data"].values())
    note = f"For all 16 images at once the two gradients differ by at most {apart:.0e}."
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
                each.plot(step[axis]["values"], seconds, "o-", markersize=3, label=side, color=COLORS[side])
            each.set(xlabel=axis.replace("_", " "), ylabel="seconds a step", ylim=(0, None))
        pictures[0].legend(fontsize=7)

    return [on_a_cpu, by_network, report.plot("growth", draw, 3)]


def validation(report: Report) -> str:
    """NMS and metrics."""
    results = [found for name in ("validation_time_cpu", "validation_coco_cpu") if (found := report.newest(name))]
    if not results:
        return missing("validation", "python benchmarks/validation_time.py")
    cases = {
        case: found
        for result in results
        for case, found in result.content.items()
        if isinstance(found, dict) and case != "machine"
    }
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
    grown = [
        f"{case}: resident memory grows by {gib(found['ultralytics']['grown_bytes'])} with Ultralytics, "
        f"by {gib(found['yolofit']['grown_bytes'])} with yolofit."
        for case, found in cases.items()
        if "grown_bytes" in found["yolofit"]
    ]
    sources = "\n\n".join(result.source() for result in results)
    return "\n\n".join([sources, table(head, rows, num_text=2), *grown])


SECTIONS: dict[str, Callable[[Report], str]] = {
    "1. Memory and speed on a GPU": on_gpu,
    "1. Training within 16 GiB": budget,
    "1. The largest micro-batch on a card": cards,
    "1. Compiled networks": compiled,
    "1. Kernels on a GPU": kernels,
    "2. Memory and speed on a CPU": on_cpu,
    "2. Engine and limits of the machine": engine,
    "3. Plan against measurement": plan,
    "4. Precision": precision,
    "5. Accumulation": accumulation,
    "6. Loader": loader,
    "6. Loader with several workers": loader_workers,
    "7. Fidelity": fidelity,
    "8. Growth": growth,
    "9. Validation": validation,
    "10. Architectures": architectures,
}
