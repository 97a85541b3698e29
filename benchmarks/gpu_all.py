"""Every measurement that needs a GPU, in one go of less than ten minutes: a JSON file for each into one folder.

python benchmarks/gpu_all.py --out-folder benchmarks/results
python benchmarks/gpu_all.py --dry-run   # tiny shapes on a CPU, the kernels in Triton's interpreter

1. `kernels`: BatchNorm + SiLU, forward, again and backward: fused against PyTorch's kernels and torch.compile.
2. `steps`: seconds and peak memory of an optimizer step at each recompute level, and of the Ultralytics trainer's step.
3. `layouts`: the step in channels_last against contiguous.

A measurement that fails is noted with its error, and the next one starts.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from common import NUM_CLASSES, alternate, compare, random_window, training_step, write
from step_time import UltralyticsLoop
from torch import nn
from torch.nn import functional as F

from models.network import build_network
from models.recompute import fused_norm_act, norm_act

GIB = 1024**3
SHAPES = [(16, 64, 320, 320), (16, 128, 160, 160), (16, 256, 80, 80), (16, 512, 20, 20)]  # of yolo11l at 640
TINY_SHAPES = [(2, 8, 12, 12)]


def measure_kernels(dry: bool) -> dict[str, Any]:
    """Each phase of BatchNorm + SiLU by each implementation; effective GB/s by the fused kernels' bytes."""
    results = {}
    for shape in TINY_SHAPES if dry else SHAPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.float32,) if dry else (torch.float16, torch.float32):
                key = f"{shape}, {str(layout)[6:]}, {str(dtype)[6:]}"
                results[key] = _measure_map(shape, layout, dtype, dry)
    return results


def _measure_map(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, dry: bool
) -> dict[str, Any]:
    device = "cpu" if dry else "cuda"
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
    grad = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
    affine = torch.rand(2, shape[1], device=device).unbind()
    running = torch.rand(2, shape[1], device=device).unbind()
    _, mean, variance = norm_act.normalise_by_batch(x, *affine, None, 0.03, 1e-3, True)
    phases: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "again": {}, "backward": {}}
    for name, kernels in (("eager", norm_act), ("fused", fused_norm_act)):
        forward = functools.partial(kernels.normalise_by_batch, x, *affine, running, 0.03, 1e-3, True)
        again = functools.partial(kernels.normalise_activate, x, *affine, mean, variance, True)
        backward = functools.partial(kernels.backward, grad, x, *affine, mean, variance, True, True)
        for phase, function in zip(phases, (forward, again, backward), strict=True):
            phases[phase][name] = function
    if not dry:
        compiled = torch.compile(lambda x, *norm: F.silu(F.batch_norm(x, *norm, True)))
        phases["forward"]["torch.compile"] = lambda: compiled(x, *running, *affine)
        leaf = x.detach().requires_grad_()
        out = compiled(leaf, *running, *affine)
        phases["backward"]["torch.compile"] = lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)
    passes = {"forward": 3, "again": 2, "backward": 5}
    results = {}
    for phase, functions in phases.items():
        seconds = compare(alternate(functions, 2 if dry else 20, warm_up=1 if dry else 5), "eager")
        rate = passes[phase] * x.nbytes / seconds["median_seconds"]["fused"] / 1e9
        results[phase] = seconds | {"fused_gb_per_second": rate}
    return results


def measure_steps(dry: bool) -> dict[str, Any]:
    """Seconds and peak bytes of an optimizer step, one configuration after the other on an empty device."""
    cases: dict[str, tuple[str, bool]] = {
        "none": ("none", True),
        "elementwise": ("elementwise", True),
        "elementwise, eager kernels": ("elementwise", False),
        "block": ("block", True),
    }
    results: dict[str, Any] = {}
    for name, (recompute, fused) in cases.items():
        kernels = nullcontext() if fused else mock.patch.object(norm_act, "kernels_for", lambda x: norm_act)
        with kernels:
            results[name] = _attempt(lambda recompute=recompute: _time_step(_our_step(dry, recompute), dry))
    results["ultralytics"] = _attempt(lambda: _time_step(_their_step(dry), dry))
    return results


def measure_layouts(dry: bool) -> dict[str, Any]:
    """The step with maps and weights in either memory format."""
    return {
        str(layout)[6:]: _attempt(lambda layout=layout: _time_step(_our_step(dry, "elementwise", layout), dry))
        for layout in (torch.contiguous_format, torch.channels_last)
    }


def _network(dry: bool, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(0)
    network = build_network("yolo11n" if dry else "yolo11l", NUM_CLASSES)
    return network.to("cpu" if dry else "cuda", memory_format=layout)


def _window(dry: bool) -> Any:
    return random_window(2, 64) if dry else random_window(16, 640).pin_memory()


def _our_step(
    dry: bool, recompute: str, layout: torch.memory_format = torch.contiguous_format
) -> Callable[[], object]:
    window = _window(dry)
    step = training_step(_network(dry, layout), len(window), len(window), "bf16" if dry else "fp16", recompute)
    return lambda: step.run(window)


def _their_step(dry: bool) -> Callable[[], object]:
    window, loop = _window(dry), UltralyticsLoop(_network(dry), torch.bfloat16 if dry else torch.float16)
    return lambda: loop(window)


def _time_step(step: Callable[[], object], dry: bool) -> dict[str, float]:
    seconds = compare(alternate({"step": step}, 2 if dry else 20, warm_up=1 if dry else 8), "step")["median_seconds"]
    result = {"seconds": seconds["step"], "images_per_second": (2 if dry else 16) / seconds["step"]}
    if not dry:
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        result["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
    return result


def _attempt(measure: Callable[[], Any]) -> Any:
    """The result, or the error as text; afterwards the device is empty."""
    try:
        return measure()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out-folder", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    parser.add_argument("--dry-run", action="store_true", help="Tiny shapes on a CPU; writes no file.")
    arguments = parser.parse_args()
    dry = arguments.dry_run
    if not dry and not torch.cuda.is_available():
        parser.error("no GPU: use --dry-run")
    torch.backends.cudnn.benchmark = True
    norm_act.use_fused_kernels(True)
    date = time.strftime("%Y-%m-%d")
    for measure in (measure_kernels, measure_steps, measure_layouts):
        name = measure.__name__.removeprefix("measure_")
        start = time.perf_counter()
        result = _attempt(functools.partial(measure, dry))
        out = None if dry else arguments.out_folder / f"gpu_{name}_{date}.json"
        what = "yolo11l, 16 x 640, fp16: " + name
        write(out, "dry run" if dry else what, {"wall_seconds": time.perf_counter() - start, name: result})


if __name__ == "__main__":
    main()
