"""How close a training step comes to the machine's limits, by part.

    python benchmarks/roofline.py --out benchmarks/results/roofline_cpu.json
    python benchmarks/roofline.py --network yolo11l --image-size 640 --images 16 --precision fp16 --out ...

FLOPs and least bytes of a step are counted from the network itself, on the meta device. Least bytes: every input is
read once and every output written once, with BatchNorm and SiLU as one operation. The machine's ceilings are measured:
a large matrix product and a large copy. A part's floor is the longer of its two times; the step's floor is their sum.
The loader works beside the step: `throughput` in a run's table says whether it keeps up.

On a CPU a part's time is its share, by the profiler, of the processor seconds of one thread. On a GPU it is the time of
its kernels, by the profiler, when they are launched one by one; the step is the captured one by the wall clock, and
what it takes beyond its kernels stands as a part of its own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from common import NUM_CLASSES, random_window, training_step, write
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.modules import Conv, DWConv

from data.loading.batch import Batch
from engine.training.optim import clip_gradients, step_if
from engine.training.precision import AUTOCAST_DTYPE, autocast
from engine.training.step import TrainingStep
from models.network import build_network, network_input, raw_predictions

FORWARD_AND_BACKWARD = 3  # passes of arithmetic: forward, gradient of the input, gradient of the weights
NORM_ACT_PASSES = 3 + 5  # maps read or written by BatchNorm + SiLU, forward and backward: see fused_norm_act
CONV_PASSES = 3  # each map, input or output: forward, gradient of the input, gradient of the weights
ADAMW_PASSES = 7  # weight, gradient and two moments read; weight and two moments written
CLIP_PASSES = 3  # gradient read for the norm, read and written for the scale
EMA_PASSES = 3
NORM_ACT_OPERATORS = ("batch_norm", "silu")
FUSED_KERNELS = ("_moments_kernel", "_merge_kernel", "_apply_kernel", "_reduce_kernel", "_sum_kernel", "_grad_kernel")
"""Of `models.kernels.fused_norm_act`, which no operator of PyTorch's launches."""
CONVOLUTIONS, NORM_ACT = "convolutions", "normalisation and activation"


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
        CONVOLUTIONS: (FORWARD_AND_BACKWARD * counter.get_total_flops(), CONV_PASSES * size * sum(conv_elements)),
        NORM_ACT: (0.0, NORM_ACT_PASSES * size * sum(norm_elements)),
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


class Parts:
    """The parts of a step, to be called one by one."""

    def __init__(self, step: TrainingStep, window: Batch) -> None:
        self.step, self.batch = step, window.to(step.device)
        predictions = self.predict()
        self.leaves = {key: predictions[key].detach().requires_grad_() for key in ("boxes", "scores")} | {
            "feats": [feature.detach() for feature in predictions["feats"]]
        }
        self.finite = torch.ones((), dtype=torch.bool, device=step.device)
        self.network_and_loss()  # gradients are there

    def predict(self) -> dict:
        """The network's forward pass."""
        with autocast(self.step.config.precision, self.step.device):
            how = self.step._input_dtype, self.step.config.fused_kernels
            return raw_predictions(self.step.network(network_input(self.batch.images, *how)))

    def backward(self, predictions: dict) -> None:
        """The loss, and backward from it."""
        batch = self.batch
        sums = self.step.loss(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)
        self.step.config.loss.total(sums, sums.normaliser).backward()

    def network_and_loss(self) -> None:
        """Forward and backward pass."""
        self.backward(self.predict())

    def loss(self) -> None:
        """The loss alone, forward and backward."""
        self.backward(self.leaves)

    def optimizer(self) -> None:
        """Clipping and AdamW."""
        gradients = [p.grad for p in self.step.network.parameters() if p.grad is not None]
        clip_gradients(gradients, 10.0)
        step_if(self.finite, self.step.optimizer, self.step.take_step)

    def ema(self) -> None:
        """The average."""
        self.step.ema.update(self.step.network, 1, self.finite)


def measured(step: TrainingStep, window: Batch) -> dict[str, float]:
    """Seconds of each part on a CPU; those of the network are shares of its forward and backward by the profiler."""
    parts, device = Parts(step, window), step.device
    whole, loss_seconds = seconds_of(parts.network_and_loss, device), seconds_of(parts.loss, device)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        parts.network_and_loss()
    shares = by_operator(profiler.key_averages(), "self_cpu_time_total")
    total = sum(shares.values())
    seconds = {name: whole * shares[name] / total for name in (CONVOLUTIONS, NORM_ACT)}
    rest = whole - sum(seconds.values()) - loss_seconds
    return seconds | {
        "rest of the network, and launching": max(rest, 0.0),
        "loss": loss_seconds,
        "clipping and optimizer": seconds_of(parts.optimizer, device),
        "ema": seconds_of(parts.ema, device),
    }


def measured_on_gpu(step: TrainingStep, window: Batch) -> dict[str, float]:
    """Seconds of the kernels of each part on a GPU."""
    parts = Parts(step, window)
    network, loss, optimizer, ema = (
        kernel_seconds(part) for part in (parts.network_and_loss, parts.loss, parts.optimizer, parts.ema)
    )
    seconds = {name: network[name] for name in (CONVOLUTIONS, NORM_ACT)}
    rest = network["all"] - sum(seconds.values()) - loss["all"]
    rest_of_step = {"loss": loss["all"], "clipping and optimizer": optimizer["all"], "ema": ema["all"]}
    return seconds | {"rest of the network": max(rest, 0.0)} | rest_of_step


def kernel_seconds(function: Callable[[], object]) -> dict[str, float]:
    """Seconds of the kernels that a call launches: all of them, and those of two parts."""
    function()  # kernels are compiled and loaded
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    seconds = split_kernels(profiler.key_averages())
    print({name: f"{1000 * value:.2f} ms" for name, value in seconds.items()}, flush=True)
    return seconds


def split_kernels(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of a GPU's kernels in the profiler's list: all, and those of convolutions and of BatchNorm + SiLU."""
    events = list(events)
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    # Ranges that somebody has named (an optimizer's step) are there beside the kernels within them.
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    shares = by_operator(operators, "self_device_time_total")
    fused = sum(event.self_device_time_total for event in kernels if event.key.startswith(FUSED_KERNELS))
    return {
        "all": sum(event.self_device_time_total for event in kernels) / 1e6,
        CONVOLUTIONS: shares[CONVOLUTIONS] / 1e6,
        NORM_ACT: (shares[NORM_ACT] + fused) / 1e6,
    }


def by_operator(events: Iterable[Any], kind: str) -> dict[str, float]:
    """Sum of one of the profiler's times over PyTorch's operators, by part."""
    shares = {CONVOLUTIONS: 0.0, NORM_ACT: 0.0, "other": 0.0}
    for event in events:
        is_norm = any(name in event.key for name in NORM_ACT_OPERATORS)
        shares[CONVOLUTIONS if "conv" in event.key else NORM_ACT if is_norm else "other"] += getattr(event, kind)
    return shares


def judged(seconds: float, flops: float, num_bytes: float, ceiling: tuple[float, float]) -> dict[str, float | None]:
    """A part's work, its floor, and its time as a multiple of that."""
    floor = max(flops / ceiling[0], num_bytes / ceiling[1])
    work = {"gflop": flops / 1e9, "least_gb": num_bytes / 1e9, "floor_seconds": floor}
    return work | {"seconds": seconds, "ratio": seconds / floor if floor else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    if device.type == "cuda":
        window = window.pin_memory()
    step = training_step(
        copy.deepcopy(network), arguments.images, arguments.images, arguments.precision, arguments.recompute
    )
    ceiling = ceilings(device, dtype)
    work = least_work(arguments.network, tuple(window.images.shape), dtype)
    step_seconds = seconds_of(lambda: step.run(window), device)
    seconds = measured(step, window) if device.type == "cpu" else measured_on_gpu(step, window)
    if device.type == "cuda":
        seconds["beside its kernels"] = max(step_seconds - sum(seconds.values()), 0.0)
    parts = {name: judged(part, *work.get(name, (0.0, 0.0)), ceiling) for name, part in seconds.items()}
    floor = sum(part["floor_seconds"] for part in parts.values())
    what = f"{arguments.network}, {arguments.images} x {arguments.image_size}, {arguments.precision}"
    limits = {"gemm_gflop_per_second": ceiling[0] / 1e9, "copy_gb_per_second": ceiling[1] / 1e9}
    step_result = {"floor_seconds": floor, "seconds": step_seconds, "ratio": step_seconds / floor}
    write(arguments.out, f"{what}, {arguments.recompute}", {"ceilings": limits, "step": step_result, "parts": parts})


if __name__ == "__main__":
    main()
