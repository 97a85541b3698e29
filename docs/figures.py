"""The figures in README and docs, each computed from a result file or from code; `docs/generate.py` writes them.

A claim is a piece of a page in which ``{}`` stands for each number. This file computes the numbers, `docs/generate.py`
writes them into the page, and a test compares them. The text around them is written by hand.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from fidelity_arms import PAIRS  # noqa: E402  from this checkout
from fidelity_statistics import by_first_weights, gap_text, interval, summarize, verdict_text  # noqa: E402

from data.loading.ram_plan import RAM_SHARE, SPAWNED_WORKER_BYTES, WORKER_BYTES  # noqa: E402  from this checkout
from engine.memory.overhead import (  # noqa: E402
    CUBLAS_WORKSPACE_BYTES,
    GAPS_BYTES,
    GAPS_BYTES_PER_PIXEL,
    HOPPER_WORKSPACE_BYTES,
    MODULES_BYTES,
)
from engine.memory.probe import CUDA_CONTEXT_BYTES  # noqa: E402
from engine.planning.choose import (  # noqa: E402
    FUSED_EXTRA_TIME,
    MARGIN_SHARE,
    MICRO_BATCH_COST,
    UNFUSED_EXTRA_TIME,
    time_of_step,
)

RESULTS = ROOT / "benchmarks" / "results"
GIB, MIB = 2**30, 2**20
NUMBER = r"[+-]?\d+(?:[.,]\d+)*"
SIZES = ((16, 640), (32, 640), (16, 800), (32, 800))
LEVELS = ("none", "elementwise", "block")
TILE_IN_USE = "2048 elements, 128 channels, 4 warps, 1024 programs"
DECODED = ("decoded at a half", "decoded in full")


@dataclass(frozen=True)
class Claim:
    """A piece of a page with numbers."""

    page: str
    """Path from the root of the repository."""
    text: str
    """The text of the page: a blank matches any white space, ``{}`` matches a number."""
    values: Callable[[], Iterable[str]]
    """Returns the numbers as the page writes them."""

    def spans(self, page: str) -> list[tuple[int, int]]:
        """Start and end of each number in the text of the page.

        Raises:
            ValueError: If the page does not have the claim exactly once.
        """
        words = (re.escape(word).replace(r"\{\}", f"({NUMBER})") for word in self.text.split())
        found = list(re.finditer(r"\s+".join(words), page))
        if len(found) != 1:
            raise ValueError(f"{self.page}: stands there {len(found)} times, not once: {self.text}")
        return [found[0].span(group + 1) for group in range(self.text.count("{}"))]


@cache
def result(name: str) -> Any:
    """The newest result file whose name begins with ``name`` and a date."""
    dated = "????-??-??.json"
    return json.loads(max(RESULTS.glob(f"{name}_{dated}")).read_text(encoding="utf-8"))


def written(text: str, claims: Sequence[Claim]) -> str:
    """The text of a page with the numbers of its claims."""
    places = [place for claim in claims for place in zip(claim.spans(text), claim.values(), strict=True)]
    for (start, end), value in sorted(places, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def of_page(path: Path) -> list[Claim]:
    """The claims of a page."""
    return [claim for claim in CLAIMS if ROOT / claim.page == path]


def _planned(size: tuple[int, int], level: str, precision: str = "fp16") -> dict:
    (row,) = (
        row
        for row in result("plan_meta")["rows"]
        if (row["micro_batch"], row["image_size"], row["recompute"], row["precision"]) == (*size, level, precision)
    )
    return row


def _peaks_gib(size: tuple[int, int], precision: str = "fp16") -> list[str]:
    return [f"{_planned(size, level, precision)['peak_bytes'] / GIB:.1f}" for level in LEVELS]


def _verdicts(size: tuple[int, int], precision: str) -> list[str]:
    peaks = zip(LEVELS, _peaks_gib(size, precision), strict=True)
    return [f"{peak} {_planned(size, level, precision)['verdict']}" for level, peak in peaks]


def _budget(gib: int, image_size: int) -> list[str]:
    (row,) = (
        row
        for row in result("plan_meta")["recommended_by_budget"]
        if (row["budget_gib"], row["image_size"]) == (gib, image_size)
    )
    level, count = f"`{row['recompute']}`", len(row["recompute_layers"])
    if count:
        level += f", `block` in {count} layer{'s' if count > 1 else ''}"
    return [f"{row['micro_batch']} x {row['accumulate']}, {level}", f"{row['peak_bytes'] / GIB:.1f}"]


def plan_table() -> list[list[str]]:
    """Peak by micro-batch, size, precision and level, with verdicts."""
    head = ["micro-batch x size", "precision", *(f"`{level}`" for level in LEVELS)]
    names = {"fp32": "fp32", "fp16": "fp16, bf16"}
    cells = [(size, precision) for size in SIZES for precision in names]
    return [head, *([f"{m} x {s}", names[p], *_verdicts((m, s), p)] for (m, s), p in cells)]


OURS_LESS_THEIRS = "yolofit less ultralytics"
DEFAULTS = "yolofit, its defaults less ultralytics, its defaults"
LAST = "last, validated by yolofit"
COMPARISONS = {
    ("fidelity_boards_cpu", OURS_LESS_THEIRS): "drawn boards, same recipe, random weights",
    ("fidelity_photos_cpu", OURS_LESS_THEIRS): "photographs, same recipe, weights of drawn boards",
    ("fidelity_defaults_boards_cpu", DEFAULTS): "drawn boards, own defaults, random weights",
    ("fidelity_defaults_photos_cpu", DEFAULTS): "photographs, own defaults, weights of drawn boards",
}
"""The compared settings, by result file and pair."""
EXACTNESS = {"fidelity_exact_cpu": "random weights", "fidelity_exact_pretrained_cpu": "weights of drawn boards"}
"""The first weights, by result file."""


@cache
def _last(name: str) -> dict[str, Any]:
    """Arms and gaps of the last epoch of a result file with a single data set."""
    summary = summarize(result(name)["runs"], PAIRS, result(name)["orders"])
    (found,) = (case for title, case in summary.items() if title.endswith(LAST))
    return found


def fidelity_table() -> list[list[str]]:
    """The mAP50-95 of yolofit and of Ultralytics, the gap and the verdict."""
    rows = [["", "seeds", "Ultralytics", "yolofit", "gap and 95 % interval", ""]]
    for (name, pair), label in COMPARISONS.items():
        found = _last(name)
        gap, maps = found["gaps"][pair], [found["arms"][arm]["mean"] for arm in reversed(pair.split(" less "))]
        means = (f"{value:.4f}" for value in maps)
        rows.append([label, str(gap["seeds"]), *means, gap_text(gap), verdict_text(gap)])
    return rows


def exchange_table() -> list[list[str]]:
    """The gap that each exchange in yolofit causes."""
    rows = [["exchanged", "seeds", "gap and 95 % interval"]]
    for pair, gap in _last("fidelity_boards_cpu")["gaps"].items():
        first, other = pair.split(" less ")
        if other == "yolofit" and first.startswith("yolofit, ") and "interval_95" in gap:
            rows.append([first.removeprefix("yolofit, "), str(gap["seeds"]), gap_text(gap)])
    return rows


def partners_table() -> list[list[str]]:
    """Training losses of both kinds of mosaic partners, less the losses of Ultralytics, while mosaics are on."""
    rows = [["partners", "seeds", "class loss in training", "box loss in training"]]
    for arm, label in (("yolofit, pools of 64", "pools of 64 images"), ("yolofit", "the whole data set")):
        gaps = [_training_gap(arm, "ultralytics", loss) for loss in ("cls_loss", "box_loss")]
        rows.append([label, gaps[0][0], *(text for _, text in gaps)])
    return rows


CROSSED = {
    ("yolofit, their batches", "ultralytics"): "the steps, on the batches of Ultralytics",
    ("yolofit", "ultralytics, our batches"): "the steps, on the batches of yolofit",
    ("yolofit", "yolofit, their batches"): "the batches, in the step of yolofit",
    ("ultralytics, our batches", "ultralytics"): "the batches, in the step of Ultralytics",
}
"""What two arms of `fidelity_arms` differ in."""


def crossed_table() -> list[list[str]]:
    """Training losses with the step or the batches of yolofit, less the losses with those of Ultralytics."""
    rows = [["compared", "seeds", "class loss in training", "box loss in training"]]
    for (arm, other), label in CROSSED.items():
        gaps = [_training_gap(arm, other, loss) for loss in ("cls_loss", "box_loss")]
        rows.append([label, gaps[0][0], *(text for _, text in gaps)])
    return rows


MOSAIC_EPOCHS = slice(2, 8)
"""The epochs, out of ten, after the warm-up and before mosaics end."""


def _training_gap(arm: str, other: str, loss: str) -> tuple[str, str]:
    """Number of seeds, and mean and 95 % interval of a training loss relative to the loss of another arm."""
    losses: dict[str, dict[int, float]] = {}
    for run in result("fidelity_boards_cpu")["runs"]:
        losses.setdefault(run["trainer"], {})[run["seed"]] = statistics.fmean(run["curves"][loss][MOSAIC_EPOCHS])
    theirs, orders = losses[other], result("fidelity_boards_cpu")["orders"]
    gaps = {seed: losses[arm][seed] / theirs[seed] - 1 for seed in losses[arm].keys() & theirs.keys()}
    by_weights = [statistics.fmean(group) for group in by_first_weights(gaps, orders)]
    return str(len(gaps)), gap_text(interval(by_weights), "+.1%")


def chance_table() -> list[list[str]]:
    """Standard deviations of mAP50-95 by source of chance, for each trainer."""
    arms = _last("fidelity_boards_cpu")["arms"]
    keys = ("deviation_by_order", "deviation_by_weights")
    return [
        ["", "order and augmentation", "first weights"],
        *([arm, *(f"{arms[arm][key]:.4f}" for key in keys)] for arm in ("ultralytics", "yolofit")),
    ]


def exactness_table() -> list[list[str]]:
    """Gaps of a normalizer for each micro-batch to the exact step, which has the same micro-batches or only one."""
    rows = [["micro-batches", "from", "seeds", "gap and 95 % interval"]]
    for name, weights in EXACTNESS.items():
        for pair, gap in _last(name)["gaps"].items():
            first = pair.split(" less ")[0]
            if first.endswith(", own normalisers"):
                micro = first.removeprefix("yolofit, ").removesuffix(", own normalisers")
                micro = micro.replace("frozen, ", "BatchNorm frozen, ")
                rows.append([micro, weights, str(gap["seeds"]), gap_text(gap)])
    return rows


def batchnorm_table() -> list[list[str]]:
    """Gaps of exact accumulation to the whole batch at once, which BatchNorm causes."""
    rows = [["micro-batches", "seeds", "gap and 95 % interval"]]
    for micro in ("4 x 4", "16 x 1"):
        gap = _last("fidelity_exact_cpu")["gaps"][f"yolofit, {micro} less yolofit"]
        rows.append([micro, str(gap["seeds"]), gap_text(gap)])
    return rows


def short_plan_table() -> list[list[str]]:
    """Peak by micro-batch, size and level, in 16 bits."""
    head = ["micro-batch x size", *(f"`{level}`" for level in LEVELS)]
    return [head, *([f"{m} x {s}", *_peaks_gib((m, s))] for m, s in SIZES)]


def budget_table() -> list[list[str]]:
    """The recommended plan by budget."""
    what = "micro-batch x accumulate, level"
    budgets = sorted({row["budget_gib"] for row in result("plan_meta")["recommended_by_budget"]}, reverse=True)
    head = ["budget", f"640: {what}", "needs", f"800: {what}", "needs"]
    return [head, *([f"{gib} GiB", *_budget(gib, 640), *_budget(gib, 800)] for gib in budgets)]


def breakdown_table() -> list[list[str]]:
    """The popular breakdown and the simulated one, at 32 x 640 and `none`."""
    row = _planned((32, 640), "none")
    popular = {
        "weights": ("weights", "2.0"),
        "momentum": ("momentum", "2.0"),
        "variance": ("variance", "2.0"),
        "gradients": ("gradients", "2.0"),
        "ema": ("average of the weights (EMA)", "-"),
        "activations": ("activations and their gradients", "5.0"),
        "inputs": ("images", "3.0"),
        "loss": ("loss and assignment", "-"),
        "autocast_copies": ("half-precision copies of weights", "-"),
        "workspaces": ("workspaces, rounding", "-"),
        "allocator_gaps": ("gaps in the allocator (from measurements)", "-"),
        "cuda_context": ("CUDA itself (assumed)", "-"),
    }
    shares = dict(row["components"])
    shares["activations"] += shares.pop("activation_gradients")
    shares["workspaces"] += shares.pop("allocator_rounding") + shares.pop("temporaries")
    rows = [[label, theirs, f"{shares.pop(name) / GIB:.2f}"] for name, (label, theirs) in popular.items()]
    assert not shares, f"components without a row: {shares}"
    rows.insert(7, ["augmentation buffers", "2.0", "0: they are in the RAM of the loader's workers"])
    head = ["at 32 x 640, fp16, `none`", "the popular breakdown, GB", "simulated, GiB"]
    return [head, *rows, ["sum", "18", f"{row['peak_bytes'] / GIB:.2f}"]]


def loader_table() -> list[list[str]]:
    """Images per second of yolofit's loader and of Ultralytics'."""
    labels = {
        "disk": "from disk, HSV on the host",
        "disk_color_on_device": "from disk, HSV left to the GPU (whose time is not counted)",
        "ram": "from RAM, HSV on the host",
        "ram_color_on_device": "from RAM, HSV left to the GPU",
        "ram_color_by_torch": "from RAM, the GPU's code for HSV run by this CPU",
        "ram_worker": "from RAM, HSV on the host, in a worker process",
    }
    rows = []
    for name, label in labels.items():
        found = result("loader")["results"][name]
        theirs, ours = (value for key, value in found.items() if key.endswith("images_per_second"))
        low, high = found["ratio_range"]
        speeds = [f"{theirs:.0f} images/s", f"{ours:.0f} images/s"]
        rows.append([label, *speeds, f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return [["", "Ultralytics", "here", "ratio (median of rounds)"], *rows]


def scaling_table() -> list[list[str]]:
    """Calculated efficiency by link, window and devices."""
    rows = result("scaling_paper")["rows"]
    counts = [count for count in rows[0]["efficiency"] if count != "1"]
    cells = [[row["link"], row["window"], *(f"{row['efficiency'][n]:.2f}" for n in counts)] for row in rows]
    return [["slowest link", "images", *counts], *cells]


def compile_table() -> list[list[str]]:
    """Time and memory of torch.compile and of yolofit's levels."""
    labels = {
        "torch.compile, budget 1.0": "compiled",
        "torch.compile, budget 0.3": "compiled, activation memory budget 0.3",
        "none": "`none`",
        "elementwise": "`elementwise`, fused",
    }
    rows = [
        [
            labels[row["rival"]],
            f"{row['first_step_seconds']:.0f} s",
            f"{row['median_seconds'] * 1000:.1f} ms",
            f"{row['peak_reserved_gib']:.1f} GiB",
        ]
        for row in result("gpu_compile")["rows"]
    ]
    return [["", "first step", "a step", "reserved at the peak"], *rows]


def layers_table() -> list[list[str]]:
    """What each layer keeps at each recompute level."""
    rows = result("recompute_layers_meta")["rows"]
    keys = (*(f"{level}_bytes" for level in LEVELS), "output_bytes")
    head = ["layer", "", *(f"`{level}`" for level in LEVELS), "output", "GFLOP to repeat", "rank"]
    body = [
        [
            str(row["layer"]),
            row["name"],
            *(f"{row[key] / MIB:.1f}" for key in keys),
            f"{row['forward_flops'] / 1e9:.0f}" if row["rank"] else "",
            str(row["rank"] or ""),
        ]
        for row in rows
    ]
    return [head, *body, ["all", "", *(f"{sum(row[key] for row in rows) / MIB:.0f}" for key in keys[:3]), "", "", ""]]


def _gpu_steps() -> dict[tuple[int, int], dict[str, dict]]:
    """Rows in fp16 by (micro-batch, image size) and rival."""
    cells: dict[tuple[int, int], dict[str, dict]] = {}
    for row in result("gpu_steps")["rows"]:
        if row["precision"] == "fp16":
            cells.setdefault((row["micro_batch"], row["image_size"]), {})[row["rival"]] = row
    return cells


def _gpu_ratios(key: str, rival: str, other: str) -> list[float]:
    return [cell[rival][key] / cell[other][key] for cell in _gpu_steps().values()]


def _measured_share(level: str) -> float:
    """Peak of a step at a level over that at `none`, 16 x 640."""
    cell = _gpu_steps()[16, 640]
    return cell[level]["peak_allocated_bytes"] / cell["none"]["peak_allocated_bytes"]


def _speeds() -> dict[tuple[int, int], float]:
    """Speed of `elementwise` over Ultralytics' trainer, by cell."""
    return {
        size: cell["ultralytics"]["median_seconds"] / cell["elementwise"]["median_seconds"]
        for size, cell in _gpu_steps().items()
    }


def _cpu_step(level: str) -> list[str]:
    """Time and memory of a step over Ultralytics'."""
    found = result("step_time_cpu")
    rival = f"yolofit, {level}"
    memory = found["peak_bytes"][rival] / found["peak_bytes"]["ultralytics"]
    return [f"{found['median_ratio_to_ultralytics'][rival]:.2f}", f"{memory:.2f}"]


def _largest_on_card(rival: str, card_gib: int) -> str:
    (row,) = (r for r in result("gpu_caps")["rows"] if (r["rival"], r["card_gib"]) == (rival, card_gib))
    return str(row["micro_batch"])


def _bound_percent(errors: Iterable[float], digits: int) -> str:
    """The largest error in per cent, rounded up to so many digits."""
    return f"{math.ceil(max(map(abs, errors)) * 100 * 10**digits) / 10**digits:.{digits}f}"


def _plan_error(kind: str) -> str:
    return _bound_percent((row["relative_error"] for row in result("plan_error_gpu")[kind]), 1)


def _between(network: str, digits: int) -> str:
    rows = result("plan_error")["between"]
    return _bound_percent((row["relative_error"] for row in rows if row["network"] == network), digits)


def _validators_apart() -> list[str]:
    """Largest difference of mAP50-95 between the two validators for the same weights, and the number of networks."""
    runs = [run for name in ("fidelity_cpu", "fidelity_pcb_cpu") for run in result(name)["runs"]]
    gaps = [
        abs(found["yolofit"]["map50_95"] - found["ultralytics"]["map50_95"])
        for run in runs
        for found in run["validated"].values()
    ]
    return [f"{math.ceil(max(gaps) * 1000) / 1000:.3f}", str(len(runs))]


def _workers(source: str) -> list[str]:
    """Least and largest ratio of images per second, and of RAM for both sources."""
    rows = {(row["workers"], row["side"]): row for row in result("loader_workers")["rows"]}
    counts = sorted({workers for workers, _ in rows})
    key = "images_per_second"
    ratios = [rows[n, f"ours_{source}"][key] / rows[n, f"ultralytics_{source}"][key] for n in counts]
    return [f"{min(ratios):.1f}", f"{max(ratios):.1f}"]


def _workers_ram() -> list[str]:
    rows = {(row["workers"], row["side"]): row["ram_bytes"] for row in result("loader_workers")["rows"]}
    ratios = [
        ours / rows[workers, side.replace("ours", "ultralytics")]
        for (workers, side), ours in rows.items()
        if side.startswith("ours")
    ]
    return [f"{min(ratios):.1f}", f"{max(ratios):.2f}"]


def _loss_mib(boxes: str) -> str:
    (row,) = (r for r in result("loss_memory_meta")["rows"] if (r["classes"], r["boxes"]) == (80, boxes))
    return f"{max(row['forward_peak_bytes'], row['backward_peak_bytes']) / MIB:.0f}"


def _index(key: str, digits: int) -> str:
    return f"{result('index_scale')['synthetic'][-1][key]:.{digits}f}"


def _index_files(*keys: str) -> Any:
    found = result("index_scale")["files"]
    for key in keys:
        found = found[key]
    return found


def _quickstart() -> list[str]:
    found = result("quickstart_cpu")
    return [f"{found['val_map50_after_first_epoch']:.2f}", f"{found['val_map50']:.2f}"]


def _unrecorded_ms(rival: str, fused: bool) -> str:
    (row,) = (
        r
        for r in result("gpu_unrecorded")["rows"]
        if (r["micro_batch"], r["rival"], r["layout"], r["fused_kernels"]) == (16, rival, "channels_last", fused)
    )
    return f"{row['mean_seconds'] * 1000:.0f}"


CLAIMS = (
    Claim(
        "README.md",
        "({} seconds with the installation)",
        lambda: [str(result("quickstart_cpu")["seconds_of_make_fit_with_installation"])],
    ),
    Claim("README.md", "validation boards from {} after the first epoch to {}", _quickstart),
    Claim(
        "README.md",
        "the plan came within {} % of the bytes that torch allocated, in {} cells",
        lambda: [_plan_error("allocated"), str(len(result("plan_error_gpu")["allocated"]))],
    ),
    Claim(
        "README.md",
        "takes {} of the time of Ultralytics' trainer with `none`; {} with `elementwise`, in {} of its memory; and {} "
        "with `block`, in {}.",
        lambda: [_cpu_step("none")[0], *_cpu_step("elementwise"), *_cpu_step("block")],
    ),
    Claim(
        "README.md",
        "takes {} to {} of that trainer's memory with `elementwise`, at {} times its speed (64 x 640) to {} times "
        "(8 x 640);",
        lambda: [
            f"{min(_gpu_ratios('peak_allocated_bytes', 'elementwise', 'ultralytics')):.2f}",
            f"{max(_gpu_ratios('peak_allocated_bytes', 'elementwise', 'ultralytics')):.2f}",
            f"{_speeds()[64, 640]:.2f}",
            f"{_speeds()[8, 640]:.2f}",
        ],
    ),
    Claim(
        "README.md",
        "A card of 16 GiB trains {} images at a time instead of {}.",
        lambda: [_largest_on_card("elementwise", 16), _largest_on_card("ultralytics", 16)],
    ),
    Claim("README.ko.md", "`none` {} GiB, `elementwise` {} GiB, `block` {} GiB", lambda: _peaks_gib((32, 640))),
    Claim(
        "docs/troubleshooting.md",
        "YOLO11l at 32 x 640 in fp16 needs {} GiB with `none`, {} with `elementwise` and {} with `block`",
        lambda: _peaks_gib((32, 640)),
    ),
    Claim(
        "docs/memory.md",
        "Activations are {} % of what torch allocates.",
        lambda: [f"{100 * _activation_share():.0f}"],
    ),
    Claim(
        "docs/memory.md",
        "for YOLO11l to {} %, for YOLO11n to {} %",
        lambda: [_between("yolo11l", 1), _between("yolo11n", 0)],
    ),
    Claim(
        "docs/memory.md",
        "The table of {} cells took {} processor seconds.",
        lambda: [str(len(result("plan_meta")["rows"])), f"{result('plan_meta')['table_cpu_seconds']:.0f}"],
    ),
    Claim(
        "docs/memory.md",
        "Over {} cells (8 to 64 images, 640 and 800, three levels, three precisions) the plan is within {} % of "
        "`torch.cuda.max_memory_allocated()` and within {} % of what the driver reports",
        lambda: [str(len(result("plan_error_gpu")["gpu"])), _plan_error("allocated"), _plan_error("gpu")],
    ),
    Claim("docs/memory.md", "YOLO11l has {} million parameters: 4 bytes each make {} GiB", lambda: _parameters()),
    Claim("docs/memory.md", "leaves {} % of the budget free", lambda: [f"{100 * MARGIN_SHARE:.0f}"]),
    Claim(
        "docs/memory.md",
        "The extra time of `elementwise` is {} % with fused kernels, which `none` does not use ({} to {} % "
        "measured on an H200 in fp16), and {} % without them",
        lambda: [
            f"{100 * FUSED_EXTRA_TIME:.0f}",
            f"{100 * (max(_gpu_ratios('median_seconds', 'elementwise', 'none')) - 1):.0f}",
            f"{100 * (min(_gpu_ratios('median_seconds', 'elementwise', 'none')) - 1):.0f}",
            f"{100 * UNFUSED_EXTRA_TIME:.0f}",
        ],
    ),
    Claim(
        "docs/memory.md",
        "({} of YOLO11l's for all layers; {} to {} measured without the head)",
        lambda: [_planned_block_share(), *_measured_block_shares()],
    ),
    Claim(
        "docs/memory.md",
        "on an H200 16 + 16 images take {} to {} % longer than 32, by this rule {} to {} %.",
        lambda: [*_measured_split_percent(), *_planned_split_percent()],
    ),
    Claim("docs/memory.md", "The {} is the fixed cost of each micro-batch", lambda: [f"{MICRO_BATCH_COST:.0f}"]),
    Claim(
        "docs/memory.md",
        "and {} MiB for kernels still to be loaded; without a GPU {} MiB, which is an assumption",
        lambda: [str(MODULES_BYTES // MIB), str(CUDA_CONTEXT_BYTES // MIB)],
    ),
    Claim(
        "docs/memory.md",
        "four: {} MiB each, from Hopper on {} MiB",
        lambda: [f"{size / MIB:.0f}" for size in (CUBLAS_WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES)],
    ),
    Claim(
        "docs/memory.md",
        "{} MiB and {} bytes for each pixel of a micro-batch",
        lambda: [str(GAPS_BYTES // MIB), str(GAPS_BYTES_PER_PIXEL)],
    ),
    Claim("docs/distributed.md", "| after the last backward pass | {} MB", lambda: _scaling("gradient_bytes", 0)),
    Claim("docs/distributed.md", "This is {} MB more in forward", lambda: _scaling("gradient_bytes", 0)),
    Claim("docs/distributed.md", "averaged | after the step | {} MB", lambda: _scaling("statistics_bytes", 2)),
    Claim("docs/distributed.md", "YOLO11l has {} million parameters", lambda: _parameters()[:1]),
    Claim(
        "docs/speed.md",
        "the fused kernels take {} to {} of the time of PyTorch's on maps of 80 x 80 and more",
        lambda: _tile_ratios(),
    ),
    Claim(
        "docs/distributed.md",
        "from `block` to `none` (`plan_meta_2026-11-29.json`) | {} to {} GiB",
        lambda: _peaks_gib((16, 640))[::-2],
    ),
    Claim(
        "docs/speed.md",
        "`elementwise` takes {} to {} of one at `none` (`gpu_steps_2026-11-26.json`)",
        lambda: [
            f"{min(_gpu_ratios('median_seconds', 'elementwise', 'none')):.2f}",
            f"{max(_gpu_ratios('median_seconds', 'elementwise', 'none')):.2f}",
        ],
    ),
    Claim(
        "docs/speed.md",
        "Python needed {} ms for a step of 16 images",
        lambda: [_unrecorded_ms("elementwise", True)],
    ),
    Claim(
        "docs/speed.md",
        "Lightning, logging and callbacks cost {} % over a bare PyTorch loop",
        lambda: [f"{100 * (result('overhead_cpu')['median_ratio_to_bare']['engine'] - 1):.0f}"],
    ),
    Claim(
        "docs/speed.md",
        "they cost {} % over the step alone (measured while another program used the GPU as well), which takes {} of "
        "the time of a bare loop",
        lambda: [
            f"{100 * (_gpu_overhead('engine') / _gpu_overhead('step') - 1):.0f}",
            f"{_gpu_overhead('step'):.2f}",
        ],
    ),
    Claim(
        "docs/data-loading.md",
        "{} to {} times the images of Ultralytics from disk and {} to {} times from RAM, in {} to {} of its RAM",
        lambda: [*_workers("disk"), *_workers("ram"), *_workers_ram()],
    ),
    Claim(
        "docs/fidelity.md",
        "Chance moves the gap by about {} from seed to seed",
        lambda: [f"{statistics.stdev(_last('fidelity_boards_cpu')['gaps'][OURS_LESS_THEIRS]['values']):.3f}"],
    ),
    Claim(
        "docs/data-loading.md",
        "mAP50-95 was {} on validation images made the same way and {} on the ordinary ones",
        lambda: [f"{result('reduced_decoding_cpu')['map50_95'][how]:.3f}" for how in DECODED],
    ),
    Claim(
        "docs/data-loading.md",
        "50 epochs: {}, and {} with full decoding",
        lambda: [
            f"{sum(scores) / len(scores):.3f}"
            for scores in map(result("reduced_decoding_cpu")["map50_95_after_50_epochs"].get, DECODED)
        ],
    ),
    Claim(
        "docs/datasets.md",
        "20 million boxes take {} GiB, are mapped and checked in {} s, and cost a process that reads them {} MiB",
        lambda: [
            _index("array_gib", 2),
            _index("load_and_check_seconds", 1),
            _index("own_memory_mib_after_reading", 0),
        ],
    ),
    Claim(
        "docs/datasets.md",
        "path and boxes takes {} µs, and {} µs in an index a hundred times smaller.",
        lambda: [f"{row['read_microseconds_per_image']:.0f}" for row in result("index_scale")["synthetic"][::-1]],
    ),
    Claim(
        "docs/datasets.md",
        "Comparing the files with the index took {} µs an image",
        lambda: [f"{1e6 * _index_files('start_seconds', 'unchanged') / _index_files('num_images'):.0f}"],
    ),
    Claim(
        "docs/datasets.md",
        "the first scan, which reads headers and labels, {} ms an image in one process",
        lambda: [f"{_index_files('scan_microseconds_per_image', 'one_process') / 1000:.1f}"],
    ),
    Claim(
        "docs/recompute.md",
        "relative to `none`: `elementwise` {}, `block` {}.",
        lambda: [f"{_measured_share(level):.2f}" for level in ("elementwise", "block")],
    ),
    Claim(
        "docs/troubleshooting.md",
        "the two differ by up to {} (mAP50-95 of the same weights, {} networks",
        _validators_apart,
    ),
    Claim(
        "docs/export.md",
        "reaches an mAP50 of {} with yolo11n, {} with yolov8n, {} with yolo12n and {} with yolov8n-p2",
        lambda: [f"{value:.2f}" for value in result("quickstart_networks_cpu")["val_map50"].values()],
    ),
    Claim("docs/migrating.md", "The AP of Ultralytics is up to {} off", lambda: _validators_apart()[:1]),
    Claim(
        "docs/data-loading.md",
        "| each worker | about {} MiB; {} MiB where workers are not forked",
        lambda: [str(WORKER_BYTES // MIB), str(SPAWNED_WORKER_BYTES // MIB)],
    ),
    Claim("docs/data-loading.md", "all within {} % of the RAM that is available", lambda: [f"{100 * RAM_SHARE:.0f}"]),
    Claim(
        "docs/recompute.md",
        "{} MiB with 10 boxes in every image, {} MiB with 300 boxes in one of them, {} MiB with 300 in every image",
        lambda: [
            _loss_mib(boxes)
            for boxes in ("10 in every image", "300 in one image, 10 in each other", "300 in every image")
        ],
    ),
)


def _activation_share() -> float:
    components = _planned((32, 640), "none")["components"]
    beside_torch = ("allocator_gaps", "cuda_context")
    allocated = sum(value for name, value in components.items() if name not in beside_torch)
    return (components["activations"] + components["activation_gradients"]) / allocated


def _parameters() -> list[str]:
    """Parameters in millions, and GiB of them in FP32."""
    parameter_bytes = result("scaling_paper")["gradient_bytes"]
    return [f"{parameter_bytes / 4e6:.1f}", f"{parameter_bytes / GIB:.2f}"]


def _scaling(key: str, digits: int) -> list[str]:
    return [f"{result('scaling_paper')[key] / 1e6:.{digits}f}"]


def _planned_block_share() -> str:
    """The arithmetic that `block` repeats in all layers, as a share of a step's arithmetic."""
    rows = result("recompute_layers_meta")["rows"]
    repeated = sum(row["forward_flops"] for row in rows if row["rank"])
    return f"{repeated / 3 / sum(row['forward_flops'] for row in rows):.2f}"


def _measured_block_shares() -> list[str]:
    key = "median_seconds"
    shares = [(cell["block"][key] - cell["elementwise"][key]) / cell["none"][key] for cell in _gpu_steps().values()]
    return [f"{min(shares):.2f}", f"{max(shares):.2f}"]


def _measured_split_percent() -> list[str]:
    """How much longer two micro-batches of 16 take than one of 32."""
    small, large = _gpu_steps()[16, 640], _gpu_steps()[32, 640]
    longer = [2 * small[level]["median_seconds"] / large[level]["median_seconds"] - 1 for level in LEVELS[:2]]
    return [f"{100 * min(longer):.0f}", f"{100 * max(longer):.0f}"]


def _planned_split_percent() -> list[str]:
    longer = [time_of_step(32, 2, extra) / time_of_step(32, 1, extra) - 1 for extra in (0, FUSED_EXTRA_TIME)]
    return [f"{100 * min(longer):.0f}", f"{100 * max(longer):.0f}"]


def _tile_ratios() -> list[str]:
    """Of the tile that is used, on the maps of at least 80 x 80."""
    ratios = [
        fused / pytorch
        for size, found in result("gpu_tiles")["microseconds"].items()
        if int(size.split(" x ")[-1]) >= 80
        for fused, pytorch in zip(found["fused_by_tile"][TILE_IN_USE], found["pytorch"], strict=True)
    ]
    return [f"{min(ratios):.2f}", f"{max(ratios):.2f}"]


def _gpu_overhead(side: str) -> float:
    return result("gpu_overhead")["median_ratio_to_bare"][side]
