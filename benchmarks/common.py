"""Shared by the benchmarks: windows of random images, alternating timing, and result files."""

from __future__ import annotations

import copy
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pynvml
import torch
from torch import nn

from data.loading.batch import Batch
from engine.memory.storages import CUDA_ALLOCATION_BYTES, StorageTracker
from engine.training.config import ModelConfig
from engine.training.ema import WeightAverage
from engine.training.nonfinite import NonFiniteGuard
from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.out_of_memory import MemorySettings, RecoveryHooks
from engine.training.precision import Precision, autocast, build_scaler
from engine.training.schedule import Schedule
from engine.training.step import TrainingStep
from models.detection.loss import DetectionLoss, LossGains
from models.network import head_strides

NUM_CLASSES = 25
BOXES_PER_IMAGE = 12


def random_window(num_images: int, image_size: int, seed: int = 0, boxes_per_image: int = BOXES_PER_IMAGE) -> Batch:
    """A window of random images with random boxes."""
    generator = torch.Generator().manual_seed(seed)
    num_boxes = num_images * boxes_per_image
    centers = torch.rand(num_boxes, 2, generator=generator) * image_size
    sizes = (torch.rand(num_boxes, 2, generator=generator) * 0.3 + 0.05) * image_size
    return Batch(
        images=torch.randint(0, 256, (num_images, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        boxes_xyxy_px=torch.cat([centers - sizes / 2, centers + sizes / 2], 1).clamp(0, image_size),
        classes=torch.randint(0, NUM_CLASSES, (num_boxes,), generator=generator),
        image_index=torch.arange(num_boxes) // max(boxes_per_image, 1),
        names=[f"{i}.jpg" for i in range(num_images)],
    )


def training_step(
    network: nn.Module,
    window_size: int,
    micro_batch_size: int,
    precision: Precision = "fp32",
    recompute: str = "none",
    hooks: RecoveryHooks = RecoveryHooks(),  # noqa: B008  frozen
) -> TrainingStep:
    """Build a training step on the network's device, as `engine.loop.module` does."""
    config = ModelConfig(precision=precision)
    device = next(network.parameters()).device
    fused = config.fused_kernels
    memory = MemorySettings(network, window_size, micro_batch_size, fused_kernels=fused, hooks=hooks)
    memory._set(micro_batch_size, recompute)
    optimizer = build_optimizer(network, config.optimizer, window_size)
    return TrainingStep(
        network=network,
        loss=DetectionLoss(head_strides(network), fused),
        config=config,
        optimizer=optimizer,
        schedule=Schedule(config.schedule, max_epochs=100, steps_per_epoch=100),
        ema=WeightAverage(network, config.ema),
        scaler=build_scaler(precision, device),
        guard=NonFiniteGuard(10),
        memory=memory,
        take_step=optimizer.step,
    )


class BareLoop:
    """One optimizer step in plain PyTorch, with yolofit's network, loss and optimizer."""

    def __init__(self, network: nn.Module, micro_batch_size: int, precision: Precision = "fp32") -> None:
        self.network, self.micro_batch_size, self.precision = network, micro_batch_size, precision
        self.device = next(network.parameters()).device
        self.scaler = build_scaler(precision, self.device)
        self.loss, self.gains = DetectionLoss(head_strides(network)), LossGains()
        self.optimizer = build_optimizer(network, OptimizerConfig(), 16)
        self.ema = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = zip(self.ema.state_dict().values(), network.state_dict().values(), strict=True)
        self.averages, self.weights = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)

    def __call__(self, window: Batch) -> None:
        """Run forward and backward of each micro-batch, clip, step and average the weights."""
        for on_host in window.split(self.micro_batch_size):
            batch = on_host.to(self.device, non_blocking=True)
            with autocast(self.precision, self.device):
                predictions = self.network(batch.images.float().div_(255))
            sums = self.loss(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)
            self.scaler.scale(self.gains.total(sums, sums.normaliser) * len(batch)).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averages), list(self.weights), 1e-4)


def alternate(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call the functions in turn and return the seconds of each call, until the GPU has finished.

    With ``clock=time.process_time`` and one thread, other work on the machine has little effect.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(warm_up + rounds):
        for name, function in functions.items():
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: times[warm_up:] for name, times in seconds.items()}


def compare(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Medians and quartiles of the seconds and of the paired ratios to ``base``."""
    ratios = {name: [a / b for a, b in zip(times, seconds[base], strict=True)] for name, times in seconds.items()}
    return {
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "quartile_seconds": {name: quartiles(times) for name, times in seconds.items()},
        f"median_ratio_to_{base}": {name: statistics.median(values) for name, values in ratios.items()},
        f"quartile_ratio_to_{base}": {name: quartiles(values) for name, values in ratios.items()},
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third quartile."""
    return np.percentile(values, [25, 75]).tolist()


def step_tensors(step: TrainingStep) -> list[torch.Tensor]:
    """The tensors that a training step keeps between two windows: weights, weight average, optimizer state."""
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    return [*module_tensors(step.network), *module_tensors(step.ema), *state]


def module_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def cpu_peak_bytes(function: Callable[[], object], held: Sequence[torch.Tensor]) -> int:
    """Peak bytes of tensors on the CPU during a call, including the ``held`` tensors."""
    tracker = StorageTracker("cpu", CUDA_ALLOCATION_BYTES)
    tracker.track([tensor for tensor in held if isinstance(tensor, torch.Tensor)], None)
    with tracker:
        tracker.reset_peak()
        function()
    return tracker.peak_bytes


def machine() -> dict[str, Any]:
    """Hardware, versions, commit and date of a measurement."""
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": os.environ.get("YOLOFIT_COMMIT") or _commit(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    about |= {name: version(name) for name in ("torch", "torchvision", "lightning", "ultralytics")}
    if torch.cuda.is_available():
        about |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return about


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _driver() -> str:
    pynvml.nvmlInit()
    return pynvml.nvmlSystemGetDriverVersion()


def _commit() -> str | None:
    """The commit, with ``+`` if files differ from it; None if the folder is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout else "")


def _command() -> str:
    """The command line, without the path of the result and with absolute paths shortened to ``PATH/TO``."""
    words, arguments = ["python", f"benchmarks/{Path(sys.argv[0]).name}"], iter(sys.argv[1:])
    for word in arguments:
        if word == "--out":
            next(arguments)
        elif Path(word).is_absolute():
            words.append("/".join(["PATH/TO", *Path(word).parts[-2:]]))
        else:
            words.append(word)
    return shlex.join(words)


def write(out: Path | None, what: str, results: Mapping[str, Any], quiet: bool = False) -> None:
    """Print the results with their command and machine, and write them to ``out``."""
    text = json.dumps({"what": what, "command": _command(), "machine": machine()} | dict(results), indent=2)
    if not quiet:
        print(text, flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
