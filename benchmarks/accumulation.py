"""Difference between the gradient of K micro-batches and of the whole batch, with Ultralytics' loss and with yolofit's.

    python benchmarks/accumulation.py --data synthetic PATH/TO/data.yaml --out benchmarks/results/accumulation_cpu.json

yolo11n in FP32 after some steps of training, with BatchNorm frozen; windows of 16 training images with mosaic.
"ultralytics" accumulates as Ultralytics' trainer does: every micro-batch divides by its own normalizer. "yolofit" is
`engine.training.accumulation`. Each gradient is compared with the same trainer's gradient of all 16 images at once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import quartiles, training_step, write
from step_time import their_batch
from torch import Tensor, nn
from ultralytics.utils.loss import v8DetectionLoss

from data.augmentation.augment import AugmentConfig
from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import DatasetYaml, read_dataset_yaml
from data.indexing.index import build_index
from data.loading.batch import Batch, collate
from data.loading.dataset import TrainDataset
from data.loading.sampler import SampleKey
from engine.training.accumulation import AccumulationWindow, back_propagate
from engine.training.schedule import Schedule, ScheduleConfig
from models.detection.loss import DetectionLoss, LossGains
from models.network import batch_norms, build_network, freeze_batch_norms, head_strides, network_input

NUM_IMAGES = 16
MICRO_BATCHES = (8, 4, 2, 1)


def make_windows(description: DatasetYaml, image_size: int, num_windows: int) -> list[Batch]:
    """Make windows of training images, as the loader does."""
    dataset = TrainDataset(build_index(description, "train"), image_size, AugmentConfig(), seed=0, max_epochs=100)
    starts = range(0, num_windows * NUM_IMAGES, NUM_IMAGES)
    keys = [[SampleKey(0, (start + i) % len(dataset)) for i in range(NUM_IMAGES)] for start in starts]
    return [collate([dataset[key] for key in window]) for window in keys]


def make_network(windows: list[Batch], num_classes: int, num_steps: int) -> nn.Module:
    """Train a network for some steps; then freeze BatchNorm with the statistics of the first window."""
    torch.manual_seed(0)
    network = build_network("yolo11n", num_classes)
    step = training_step(network, NUM_IMAGES, NUM_IMAGES)
    step.schedule = Schedule(ScheduleConfig(warmup_epochs=0), max_epochs=1, steps_per_epoch=max(num_steps, 1))
    for number in range(num_steps):
        step.run(windows[number % len(windows)])
    norms = list(batch_norms(network))
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(network_input(windows[0].images))
    freeze_batch_norms(norms)
    network.args = SimpleNamespace(box=LossGains.box, cls=LossGains.cls, dfl=LossGains.dfl)
    return network


def ultralytics_gradient(network: nn.Module, window: Batch, micro_batch_size: int) -> Tensor:
    """The gradient of Ultralytics' loss, summed over the micro-batches, in one vector."""
    criterion = v8DetectionLoss(network)
    network.zero_grad()
    for part in window.split(micro_batch_size):
        loss, _ = criterion(network(network_input(part.images)), their_batch(part))
        loss.sum().backward()
    return flat_gradient(network)


def yolofit_gradient(network: nn.Module, window: Batch, micro_batch_size: int) -> Tensor:
    """The gradient of yolofit's exact accumulation, in one vector."""
    loss, gains = DetectionLoss(head_strides(network)), LossGains()
    network.zero_grad()
    collected = AccumulationWindow(len(window), len(window.classes), torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for part in window.split(micro_batch_size):
        sums = loss(network(network_input(part.images)), part.boxes_xyxy_px, part.classes, part.image_index)
        collected.add(back_propagate(sums, gains, collected.scale, scaler))
    collected.normalise(torch.optim.SGD(network.parameters()), scaler)
    return flat_gradient(network)


def flat_gradient(network: nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def relative_error(gradient: Tensor, reference: Tensor) -> float:
    """L2 norm of the difference divided by the L2 norm of the reference."""
    return float((gradient - reference).norm() / reference.norm())


def measure(windows: list[Batch], network: nn.Module) -> dict[str, Any]:
    """Errors over the windows, by split, and how far the two whole gradients are apart."""
    sides: dict[str, Callable[..., Tensor]] = {"ultralytics": ultralytics_gradient, "yolofit": yolofit_gradient}
    errors: dict[int, dict[str, list[float]]] = {size: {name: [] for name in sides} for size in MICRO_BATCHES}
    apart = []
    for window in windows:
        whole = {name: gradient(network, window, NUM_IMAGES) for name, gradient in sides.items()}
        apart.append(relative_error(whole["yolofit"], whole["ultralytics"]))
        for size in MICRO_BATCHES:
            for name, gradient in sides.items():
                errors[size][name].append(relative_error(gradient(network, window, size), whole[name]))
    rows = [
        {"micro_batch": size, "accumulate": NUM_IMAGES // size}
        | {name: statistics.median(values) for name, values in errors[size].items()}
        | {f"{name}_quartiles": quartiles(values) for name, values in errors[size].items()}
        for size in MICRO_BATCHES
    ]
    boxes = torch.cat([torch.bincount(window.image_index, minlength=NUM_IMAGES) for window in windows])
    return {
        "num_windows": len(windows),
        "boxes_per_image_quartiles": quartiles(boxes.tolist()),
        "whole_gradients_apart": max(apart),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["synthetic"], help="`synthetic`, or paths of data.yaml files")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--steps", type=int, default=30, help="of training before")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    by_data = {}
    for data in options.data:
        with tempfile.TemporaryDirectory() as folder:
            config = SyntheticConfig(options.windows * NUM_IMAGES, 1, image_size=options.image_size)
            source = generate_pcb_dataset(Path(folder) / "boards", config) if data == "synthetic" else Path(data)
            description = read_dataset_yaml(source)
            windows = make_windows(description, options.image_size, options.windows)
        name = "synthetic" if data == "synthetic" else source.resolve().parent.name
        by_data[name] = measure(windows, make_network(windows, description.num_classes, options.steps))
    what = (
        f"relative L2 error of the gradient against that of {NUM_IMAGES} pictures of {options.image_size} px at once; "
        f"yolo11n after {options.steps} steps, fp32, BatchNorm frozen; medians over the windows"
    )
    write(options.out, what, {"data": by_data})


if __name__ == "__main__":
    main()
