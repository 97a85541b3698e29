"""The section of docs/benchmarks.md on fidelity: networks of both trainers side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fidelity_arms import PAIRS
from fidelity_statistics import MARGIN, gap_text, summarize, verdict_text
from matplotlib.axes import Axes
from report_parts import COLORS, SIDES, Report, Result, missing, table

RESULTS = (
    "gpu_fidelity",
    "fidelity_boards_cpu",
    "fidelity_photos_cpu",
    "fidelity_defaults_boards_cpu",
    "fidelity_defaults_uneven_cpu",
    "fidelity_defaults_photos_cpu",
    "fidelity_exact_cpu",
    "fidelity_exact_pretrained_cpu",
)
AGAINST = {"yolofit less ultralytics": "", "yolofit, its defaults less ultralytics, its defaults": ", defaults"}
"""The pairs with a promise, and the remark for each in the table of targets."""
INTRODUCTION = f"""Both trainers start from the same weights and see the same number of images. The gap is the mAP50-95
of the first network less the mAP50-95 of the second, by seed. The brackets have its 95 % interval by Student's t.
**Non-inferior**: the interval lies above -{MARGIN}. **Inferior**: the interval lies below -{MARGIN}. Otherwise the gap
is **undecided**, and the table has the number of independent seeds that would decide if mean and deviation stay the
same. Seeds that share random first weights count as one. If all runs start from one file, each seed counts. A class
loss below 0 % means that the first network has the lower class loss on the validation images."""
HEAD = ("epoch, validator", "network", "beside", "seeds", "mAP50-95", "beside", "gap, 95 % interval", "class loss", "")


def fidelity(report: Report) -> str:
    """Networks of both trainers: mAP, gaps and verdicts."""
    results = [found for name in RESULTS if (found := report.newest(name))]
    parts = [INTRODUCTION.replace("\n", " "), *(_fidelity(report, result) for result in results)]
    if not results:
        report.target("7", "mAP50-95 not below Ultralytics' mean", None)
        parts = [missing("training by both", "python benchmarks/fidelity.py")]
    if plain := report.newest("fidelity_plain_cpu"):
        parts.append(_same_course(report, plain))
    return "\n\n".join(parts)


def _fidelity(report: Report, result: Result) -> str:
    """The table of gaps of one result file, the deviations by chance, and the curves."""
    orders = result.content.get("orders", 1)
    summary = summarize(result["runs"], PAIRS, orders)
    parts = [result.source()]
    for call in result.content.get("earlier_calls", []):
        parts.append(f"Some runs come from `{call['command']}`, commit {call['commit']}.")
    if note := result.content.get("note"):
        parts.append(note)
    for data in sorted({run["data"] for run in result["runs"]}):
        cases = {
            case.removeprefix(f"{data}, "): found for case, found in summary.items() if case.startswith(f"{data}, ")
        }
        parts += [f"{data.capitalize()}:", table(HEAD, _gap_rows(cases), num_text=3), *_chance(cases, orders)]
        _note_targets(report, result, data, cases)
    if failed := result["failed"]:
        parts.append(f"Failed: {', '.join(failed)}.")
    unfinished = result.content.get("unfinished", [])
    runs = result["runs"] + unfinished
    if unfinished:
        parts.append(_broken_off(runs, len(unfinished)))
    for data in sorted({run["data"] for run in runs if run["curves"]}):
        shown = [run for run in runs if run["data"] == data and run["trainer"] in SIDES]
        if shown:
            parts.append(report.plot(f"{result.name}_{data}", _draw_curves(shown), 4))
            parts.append("Curves: losses in training, and mAP50-95 by each trainer's own validator.")
    return "\n\n".join(parts)


def _gap_rows(cases: dict[str, Any]) -> list[tuple]:
    """Gaps of all pairs at the last epoch by yolofit's validator; other epochs and validators only for `AGAINST`."""
    rows = []
    for case, found in cases.items():
        for pair, gap in found["gaps"].items():
            if case != "last, validated by yolofit" and pair not in AGAINST:
                continue
            first, other = pair.split(" less ")
            maps = (f"{found['arms'][arm]['mean']:.4f}" for arm in (first, other))
            shown = verdict_text(gap) if pair in AGAINST else ""
            rows.append((case, first, other, gap["seeds"], *maps, gap_text(gap), _class_loss(gap), shown))
    return rows


def _class_loss(gap: dict[str, Any]) -> str:
    """The interval of the class loss, relative to the second network's class loss."""
    loss = gap["beside"].get("cls_loss", {})
    if "interval_95" not in loss:
        return "-"
    lowest, highest = (value / loss["level"] for value in loss["interval_95"])
    return f"{lowest:+.1%} to {highest:+.1%}"


def _chance(cases: dict[str, Any], orders: int) -> list[str]:
    """Standard deviations of each trainer by order and augmentation, and by first weights."""
    if orders == 1:
        return []
    arms = cases["last, validated by yolofit"]["arms"]
    rows = [
        (arm, *(f"{arms[arm][key]:.4f}" for key in ("deviation_by_order", "deviation_by_weights")))
        for arm in SIDES
        if "deviation_by_order" in arms.get(arm, {})
    ]
    head = ("standard deviation of mAP50-95", "by order and augmentation", "by first weights")
    return [table(head, rows)] if rows else []


def _note_targets(report: Report, result: Result, data: str, cases: dict[str, Any]) -> None:
    found = cases.get("last, validated by yolofit", {"gaps": {}})
    where = "GPU" if "gpu" in result["machine"] else "CPU"
    for pair, remark in AGAINST.items():
        if gap := found["gaps"].get(pair):
            text = f"{where}, {data}{remark}: mAP50-95 at most {MARGIN} below Ultralytics', with 95 % certainty"
            report.state("7", text, f"{gap_text(gap)}, {gap['seeds']} seeds", verdict_text(gap))


def _same_course(report: Report, result: Result) -> str:
    """Differences between the losses of the two trainers in a training without random choices."""
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
    note = "Relative difference of the losses by epoch, in a training of one step an epoch without random choices:"
    return f"{result.source()}\n\n{note}\n\n{table(('', *epochs), rows)}"


def _draw_curves(runs: list[dict[str, Any]]) -> Callable[..., None]:
    """A function that draws the curves of the runs on one data set."""

    def draw(*pictures: Axes) -> None:
        for each, curve in zip(pictures, ("box_loss", "cls_loss", "dfl_loss", "val_map50_95"), strict=True):
            for run in runs:
                points = [(epoch, y) for epoch, y in enumerate(run["curves"].get(curve, []), 1) if y is not None]
                if points:
                    each.plot(*zip(*points, strict=True), color=COLORS[run["trainer"]], linewidth=0.8)
            each.set_title(curve.replace("_", " "), fontsize=8)
            each.set(xlabel="epoch")
        for trainer in SIDES:
            pictures[0].plot([], [], color=COLORS[trainer], label=trainer)
        pictures[0].legend(fontsize=7)

    return draw


def _broken_off(runs: list[dict[str, Any]], num_unfinished: int) -> str:
    """For unfinished runs: mAP at the last epoch that both trainers have validated."""
    by_pair: dict[tuple, dict[str, list[float | None]]] = {}
    for run in runs:
        by_pair.setdefault((run["data"], run["seed"]), {})[run["trainer"]] = run["curves"].get("val_map50_95", [])
    rows = []
    for (data, seed), curves in sorted(by_pair.items()):
        both = list(zip(*(curves.get(side, []) for side in SIDES), strict=False))
        epochs = [epoch for epoch, maps in enumerate(both, 1) if None not in maps]
        if epochs:
            rows.append((data, seed, epochs[-1], *(f"{value:.4f}" for value in both[epochs[-1] - 1])))
    head = ("mAP50-95 by each trainer's own validator", "seed", "epoch", *SIDES)
    return f"{num_unfinished} runs were stopped. The last epoch that both have validated:\n\n{table(head, rows)}"
