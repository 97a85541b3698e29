"""How close a training step comes to the machine's limits, by part.

python benchmarks/roofline.py --out benchmarks/results/roofline_cpu.json

FLOPs and least bytes of a step are counted from the network itself, on the meta device. Least bytes: every input is
read once and every output written once, with BatchNorm and SiLU as one operation. The machine's ceilings are measured:
a large matrix product and a large copy. A part's floor is the longer of its two times; the step's floor is their sum.
The loader works beside the step: `throughput` in a run's table says whether it keeps up.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import NUM_CLASSES, random_window, training_step, write
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.modules import Conv, DWConv

from data.batch import Batch
from engine.optim import clip_gradients, step_if
from engine.precision import AUTOCAST_DTYPE, autocast
from models.network import build_network, network_input, raw_predictions

FORWARD_AND_BACKWARD = 3  # passes of arithmetic: forward, gradient of the input, gradient of the weights
NORM_ACT_PASSES = 3 + 5  # maps read or written by BatchNorm + SiLU, forward and backward: see fused_norm_act
CONV_PASSES = 3  # each map, input or output: forward, gradient of the input, gradient of the weights
ADAMW_PASSES = 7  # weight, gradient and two moments read; weight and two moments written
CLIP_PASSES = 3  # gradient read for the norm, read and written for the scale
EMA_PASSES = 3
NORM_ACT_OPERATORS = ("batch_norm", "silu")


def least_work(name: str, images_shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """FLOPs and bytes of one step with a single micro-batch, by part."""
    network = build_network(name, NUM_CLASSES).to("meta", dtype)
    conv_elements, norm_elements = [], []

    def count_conv(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        conv_elements.append(inputs[0].numel() + output.numel() + module.weight.numel())

    def count_norm(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        norm_elements.append(output.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count_conv)
        elif isinstance(module, Conv | DWConv):
            module.bn.register_forward_hook(count_norm)
    with FlopCounterMode(display=False) as counter:
        predictions = network(torch.empty(images_shape, device="meta", dtype=dtype))
    num_weights = sum(p.numel() for p in network.parameters())
    logits = sum(predictions[key].numel() for key in ("boxes", "scores"))
    size = dtype.itemsize
    return {
        "convolutions": (FORWARD_AND_BACKWARD * counter.get_total_flops(), CONV_PASSES * size * sum(conv_elements)),
        "normalisation and activation": (0.0, NORM_ACT_PASSES * size * sum(norm_elements)),
        "loss": (0.0, 3.0 * size * logits),  # read in forward and in backward, gradient written
        "clipping and optimizer": (0.0, 4.0 * (CLIP_PASSES + ADAMW_PASSES) * num_weights),
        "ema": (0.0, 4.0 * EMA_PASSES * num_weights),
    }


def seconds_of(function: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Median duration, after one call to warm up; on a CPU processor seconds, of the one thread."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(repeats + 1):
        start = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times[1:])


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large matrix product, and bytes/s, read plus written, of a large copy."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    source = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / seconds_of(lambda: a @ b, device)
    return flops, 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def measured(step, window: Batch) -> dict[str, float]:
    """Seconds of each part; those of the network are shares of its forward and backward by the profiler's count."""
    batch, device = window.to(step.device), step.device

    def predict() -> dict:
        with autocast(step.precision, device):
            return raw_predictions(step.network(network_input(batch.images, step._input_dtype)))

    def loss(predictions: dict) -> Tensor:
        sums = step.loss(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)
        return step.gains.total(sums, sums.normaliser)

    predictions = predict()
    leaves = {key: predictions[key].detach().requires_grad_() for key in ("boxes", "scores")} | {
        "feats": [feature.detach() for feature in predictions["feats"]]
    }
    whole = seconds_of(lambda: loss(predict()).backward(), device)
    loss_seconds = seconds_of(lambda: loss(leaves).backward(), device)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        loss(predict()).backward()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    shares = {"convolutions": 0.0, "normalisation and activation": 0.0, "other": 0.0}
    for event in profiler.key_averages():
        is_norm = any(name in event.key for name in NORM_ACT_OPERATORS)
        part = "convolutions" if "conv" in event.key else "normalisation and activation" if is_norm else "other"
        shares[part] += getattr(event, kind)
    total = sum(shares.values())
    gradients = [p.grad for p in step.network.parameters() if p.grad is not None]
    finite = torch.ones((), dtype=torch.bool, device=device)
    parts = {name: whole * share / total for name, share in shares.items()}
    parts["rest of the network, and launching"] = max(parts.pop("other") - loss_seconds, 0.0)
    parts["loss"] = loss_seconds
    parts["clipping and optimizer"] = seconds_of(
        lambda: (clip_gradients(gradients, 10.0), step_if(finite, step.optimizer, step.take_step)), device
    )
    parts["ema"] = seconds_of(lambda: step.ema.update(step.network, 1, finite), device)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--recompute", default="none")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = AUTOCAST_DTYPE[arguments.precision]
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(arguments.network, NUM_CLASSES).to(device)
    window = random_window(arguments.images, arguments.image_size)
    step = training_step(
        copy.deepcopy(network), arguments.images, arguments.images, arguments.precision, arguments.recompute
    )
    flops_per_second, bytes_per_second = ceilings(device, dtype)
    work = least_work(arguments.network, tuple(window.images.shape), dtype)
    seconds = measured(step, window)
    step_seconds = seconds_of(lambda: step.run(window), device)
    parts = {}
    for name, part_seconds in seconds.items():
        flops, nbytes = work.get(name, (0.0, 0.0))
        floor = max(flops / flops_per_second, nbytes / bytes_per_second)
        ratio = part_seconds / floor if floor else None
        parts[name] = {"gflop": flops / 1e9, "least_gb": nbytes / 1e9, "floor_seconds": floor}
        parts[name] |= {"seconds": part_seconds, "ratio": ratio}
    floor = sum(part["floor_seconds"] for part in parts.values())
    what = f"{arguments.network}, {arguments.images} x {arguments.image_size}, {arguments.precision}"
    ceiling = {"gemm_gflop_per_second": flops_per_second / 1e9, "copy_gb_per_second": bytes_per_second / 1e9}
    step_result = {"floor_seconds": floor, "seconds": step_seconds, "ratio": step_seconds / floor}
    write(arguments.out, f"{what}, {arguments.recompute}", {"ceilings": ceiling, "step": step_result, "parts": parts})


if __name__ == "__main__":
    main()
