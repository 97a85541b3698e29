"""Time and peak memory of an optimizer step at each recompute level, against the step of Ultralytics' trainer.

    python benchmarks/step_time.py --out benchmarks/results/step_time_cpu.json

The steps alternate in one process. The times are medians of the processor seconds of one thread. The peak counts every
storage, but not the scratch memory inside a kernel.

Ultralytics' step is what `BaseTrainer` does with a batch in memory, without progress bar and callbacks: conversion to
float, forward, v8DetectionLoss, running mean of the loss terms, backward, clipping, AdamW, zeroing, ModelEMA.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import torch
from common import (
    NUM_CLASSES,
    alternate,
    compare,
    cpu_peak_bytes,
    module_tensors,
    random_window,
    step_tensors,
    training_step,
    write,
)
from torch import nn
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import ModelEMA

from data.loading.batch import Batch
from engine.training.optim import OptimizerConfig, parameter_groups
from models.network import build_network
from models.recompute.levels import Level


class UltralyticsLoop:
    """One optimizer step with their loss, average and order of things."""

    def __init__(self, network: nn.Module, amp: torch.dtype | None = None, compiled: bool = False) -> None:
        self.network, self.amp = network, amp
        # What their ``compile=True`` comes to: the network alone, in the mode "default".
        self.predict = torch.compile(network, backend="inductor") if compiled else network
        self.device = next(network.parameters()).device
        network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        self.criterion = v8DetectionLoss(network)
        config, groups = OptimizerConfig(), parameter_groups(network)
        decays = {"decay": config.weight_decay, "norm": 0.0, "bias": 0.0}
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "weight_decay": decays[name]} for name, parameters in groups.items()],
            lr=config.lr, betas=(config.momentum, config.beta2), fused=self.device.type == "cuda" or None,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp is torch.float16)
        self.ema = ModelEMA(network)
        self.mean_loss: dict | torch.Tensor | None = None

    def __call__(self, window: Batch) -> None:
        """Their step, on one batch without accumulation."""
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            images = window.images.to(self.device, non_blocking=True).float() / 255
            loss, items = self.criterion(self.predict(images), their_batch(window))
        self.mean_loss = items
        self.scaler.scale(loss.sum()).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.network)

    def tensors(self) -> list[torch.Tensor]:
        """What it holds between two batches."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*module_tensors(self.network), *module_tensors(self.ema.ema), *state]


def their_batch(batch: Batch) -> dict[str, torch.Tensor]:
    """The boxes of a batch as their loss takes them."""
    size = batch.images.shape[-1]
    corners = batch.boxes_xyxy_px / size
    center_boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    return {
        "batch_idx": batch.image_index.float(),
        "cls": batch.classes.float().view(-1, 1),
        "bboxes": center_boxes,
    }


def cases(network: nn.Module, window: Batch) -> dict[str, tuple[Callable[[], object], list[torch.Tensor]]]:
    """By name: a function that takes a step, and the tensors that are there before and after it."""
    found: dict[str, tuple[Callable[[], object], list[torch.Tensor]]] = {}
    images = [window.images]
    for layout in (torch.contiguous_format, torch.channels_last):
        theirs = UltralyticsLoop(copy.deepcopy(network).to(memory_format=layout))
        theirs(window)  # its optimizer's state is there
        suffix = ", channels_last" if layout is torch.channels_last else ""
        found[f"ultralytics{suffix}"] = functools.partial(theirs, window), images + theirs.tensors()
        for level in get_args(Level):
            converted = copy.deepcopy(network).to(memory_format=layout)
            step = training_step(converted, len(window), len(window), recompute=level)
            step.run(window)
            found[f"yolofit, {level}{suffix}"] = functools.partial(step.run, window), images + step_tensors(step)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="With more than one, wall clock: on a quiet machine.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = build_network("yolo11n", NUM_CLASSES)
    steps = cases(network, random_window(arguments.images, arguments.image_size))
    peak_bytes = {name: cpu_peak_bytes(step, held) for name, (step, held) in steps.items()}
    functions = {name: step for name, (step, _) in steps.items()}
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    seconds = alternate(functions, arguments.rounds, clock=clock)
    threads = "one CPU thread" if arguments.threads == 1 else f"{arguments.threads} CPU threads"
    what = f"yolo11n, {arguments.images} x {arguments.image_size}, fp32, {threads}: an optimizer step"
    results = {"rounds": arguments.rounds, "peak_bytes": peak_bytes} | compare(seconds, "ultralytics")
    write(arguments.out, what, results)


if __name__ == "__main__":
    main()
