"""Fused Triton kernels on a GPU against PyTorch's own, and those of BatchNorm + SiLU against torch.compile.

    PYTHONPATH=. python benchmarks/gpu_kernels.py --out benchmarks/results/gpu_kernels_2026-11-26.json

For maps of YOLO11l at 640, in both layouts: forward, output computed again, backward. Microseconds of the kernels:
calls are captured in a CUDA graph, so that launching them from Python does not count; only torch.compile's run in an
ordinary loop, with its guards. ``floor`` is the least traffic (3, 2 and 5 passes over the map) at the speed of a copy.
Then max-pooling and the decoding of boxes, for 16 and 64 images.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from common import write
from torch.nn import functional as F

from models.detection.boxes import decode_boxes
from models.kernels import fused_norm_act, fused_pooling
from models.recompute import norm_act

SHAPES = [(16, 64, 320, 320), (16, 128, 160, 160), (16, 256, 80, 80), (16, 256, 40, 40), (16, 512, 20, 20)]
PASSES = {"forward": 3, "again": 2, "backward": 5}
STRIDES = (8, 16, 32)
CALLS, ROUNDS = 20, 7


def copy_bytes_per_second() -> float:
    """Bytes read and written by a large copy, per second."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (microseconds(lambda: target.copy_(source)) * 1e-6)


def microseconds(function: Callable[[], object], record: bool = True) -> float:
    """Median time of a call, of several rounds of `CALLS` calls."""

    def calls() -> None:
        for _ in range(CALLS):
            function()

    calls()
    torch.cuda.synchronize()
    run = calls
    if record:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        run = graph.replay
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(ROUNDS):
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / CALLS * 1000)
    return statistics.median(times)


def measure_map(shape: tuple[int, ...], layout: torch.memory_format, bytes_per_second: float) -> dict[str, Any]:
    """Each phase by each implementation, on one fp16 map."""
    x, grad = (torch.randn(shape, device="cuda").half().contiguous(memory_format=layout) for _ in range(2))
    weight, bias, *moments = torch.rand(4, shape[1], device="cuda").unbind()
    running = *moments, torch.tensor(0, device="cuda")
    _, mean, variance = norm_act.normalise_by_batch(x, weight, bias, running, 0.03, 1e-3, True)
    phases: dict[str, dict[str, float]] = {
        phase: {"floor": passes * x.nbytes / bytes_per_second * 1e6} for phase, passes in PASSES.items()
    }
    for name, kernels in (("pytorch", norm_act), ("fused", fused_norm_act)):
        statistics_ = weight, bias, mean, variance, True
        functions = (
            functools.partial(kernels.normalise_by_batch, x, weight, bias, running, 0.03, 1e-3, True),
            functools.partial(kernels.normalise_activate, x, *statistics_),
            functools.partial(kernels.backward, grad, x, *statistics_, True),
        )
        for phase, function in zip(PASSES, functions, strict=True):
            phases[phase][name] = microseconds(function)
    torch._functorch.config.donated_buffer = False  # whose backward pass runs once only
    compiled = torch.compile(lambda x, *norm: F.silu(F.batch_norm(x, *norm, True)))
    phases["forward"]["torch.compile"] = microseconds(lambda: compiled(x, *moments, weight, bias), record=False)
    leaf = x.detach().requires_grad_()
    out = compiled(leaf, *moments, weight, bias)
    phases["backward"]["torch.compile"] = microseconds(
        lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True), record=False
    )
    return phases


def measure_others(num_images: int) -> dict[str, dict[str, float]]:
    """Max-pooling as in SPPF, its backward pass, and the decoding of boxes, at 640 in fp16."""
    x, grad = (
        torch.randn(num_images, 256, 20, 20, device="cuda").half().contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    leaf = x.detach().requires_grad_()
    out = F.max_pool2d(leaf, 5, 1, 2)
    feats = [torch.empty(num_images, 1, 640 // stride, 640 // stride, device="cuda") for stride in STRIDES]
    num_anchors = sum(feat[0].numel() for feat in feats)
    predictions = {"boxes": torch.randn(num_images, 64, num_anchors, device="cuda").half(), "feats": feats}
    times: dict[str, dict[str, float]] = {
        "max-pooling": {
            "pytorch": microseconds(lambda: F.max_pool2d(x, 5, 1, 2)),
            "fused": microseconds(lambda: fused_pooling.max_pool(x, 5)),
        },
        "max-pooling, backward": {
            "pytorch": microseconds(lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)),
            "fused": microseconds(lambda: fused_pooling.max_pool_backward(grad, x, 5)),
        },
        "decoding": {},
    }
    for name, is_fused in (("pytorch", False), ("fused", True)):
        times["decoding"][name] = microseconds(functools.partial(decode_boxes, predictions, STRIDES, is_fused))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bytes_per_second = copy_bytes_per_second()
    results: dict[str, Any] = {"copy_bytes_per_second": bytes_per_second, "microseconds": {}}
    for shape in SHAPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            key = f"{' x '.join(map(str, shape))}, {str(layout)[6:].removesuffix('_format')}"
            results["microseconds"][key] = measure_map(shape, layout, bytes_per_second)
            print(key, results["microseconds"][key], flush=True)
    for num_images in (16, 64):
        results["microseconds"][f"{num_images} images"] = measure_others(num_images)
        print(num_images, results["microseconds"][f"{num_images} images"], flush=True)
    write(arguments.out, "Operations on fp16 maps: microseconds by implementation", results, quiet=True)


if __name__ == "__main__":
    main()
