"""An optimizer step of ours against the one of the Ultralytics trainer: paired, alternating, medians.

python benchmarks/step_time.py --out benchmarks/results/step_time_cpu.json

Theirs is what `BaseTrainer` does with a batch in memory, without progress bar and callbacks: to float, forward,
v8DetectionLoss, running mean of the loss terms, backward, clipping, AdamW, zeroing, ModelEMA.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from common import NUM_CLASSES, alternate, compare, random_window, training_step, write
from torch import nn
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import ModelEMA

from data.batch import Batch
from engine.optim import OptimizerConfig, parameter_groups
from models.network import build_network


class UltralyticsLoop:
    """One optimizer step with their loss, average and order of things."""

    def __init__(self, network: nn.Module, amp: torch.dtype | None = None) -> None:
        self.network, self.amp = network, amp
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
            loss, items = self.criterion(self.network(images), _their_batch(window))
        self.mean_loss = items
        self.scaler.scale(loss.sum()).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), max_norm=10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.network)


def _their_batch(batch: Batch) -> dict[str, torch.Tensor]:
    size = batch.images.shape[-1]
    corners = batch.boxes_xyxy_px / size
    centre_boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    return {
        "batch_idx": batch.image_index.float(),
        "cls": batch.classes.float().view(-1, 1),
        "bboxes": centre_boxes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = build_network("yolo11n", NUM_CLASSES)
    window = random_window(arguments.images, arguments.image_size)
    theirs = UltralyticsLoop(copy.deepcopy(network))
    functions = {"ultralytics": lambda: theirs(window)}
    for layout in (torch.contiguous_format, torch.channels_last):
        for level in ("none", "elementwise"):
            converted = copy.deepcopy(network).to(memory_format=layout)
            step = training_step(converted, arguments.images, arguments.images, recompute=level)
            functions[f"ours, {level}, {str(layout)[6:]}"] = lambda step=step: step.run(window)
    seconds = alternate(functions, arguments.rounds)
    what = f"yolo11n, {arguments.images} x {arguments.image_size}, fp32: an optimizer step, loader aside"
    write(arguments.out, what, {"rounds": arguments.rounds} | compare(seconds, "ultralytics"))


if __name__ == "__main__":
    main()
