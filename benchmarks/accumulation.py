"""How far the gradient of K micro-batches is from that of the whole batch: as usually accumulated, and as here.

    python benchmarks/accumulation.py [--out FILE]

yolo11n in FP32 with frozen BatchNorm whose statistics fit, 16 drawn boards. "Usual" lets each micro-batch divide its
loss by its own normaliser, as Ultralytics does; "exact" is `engine.accumulation`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from data.augment import AugmentConfig
from data.batch import Batch, collate
from data.dataset import TrainDataset
from data.dataset_yaml import read_dataset_yaml
from data.index import build_index
from data.sampler import SampleKey
from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.accumulation import AccumulationWindow, back_propagate
from models.loss import MIN_NORMALISER, DetectionLoss, LossGains
from models.network import batch_norms, build_network, freeze_batch_norms, head_strides, network_input

NUM_IMAGES, IMAGE_SIZE = 16, 160
SPLITS = (8, 4, 2, 1)


def make_window(folder: Path) -> tuple[Batch, int]:
    """Sixteen training pictures, and the number of classes."""
    config = SyntheticConfig(num_train=NUM_IMAGES, num_val=1, image_size=IMAGE_SIZE)
    dataset_yaml = read_dataset_yaml(generate_pcb_dataset(folder / "boards", config))
    dataset = TrainDataset(build_index(dataset_yaml, "train"), IMAGE_SIZE, AugmentConfig(), seed=0, max_epochs=100)
    return collate([dataset[SampleKey(0, i)] for i in range(NUM_IMAGES)]), dataset_yaml.num_classes


def make_network(window: Batch, num_classes: int) -> nn.Module:
    """A random network whose BatchNorm statistics are those of the window, and stay."""
    torch.manual_seed(0)
    network = build_network("yolo11n", num_classes)
    norms = list(batch_norms(network))
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(network_input(window.images))
    freeze_batch_norms(norms)
    return network


def usual_gradient(network: nn.Module, window: Batch, micro_batch_size: int) -> Tensor:
    """Each micro-batch divides its loss by its own normaliser; in one vector."""
    loss, gains = DetectionLoss(head_strides(network)), LossGains()
    network.zero_grad()
    for part in window.split(micro_batch_size):
        sums = loss(network(network_input(part.images)), part.boxes_xyxy_px, part.classes, part.image_index)
        (gains.apply(sums).sum() / sums.normaliser.clamp(min=MIN_NORMALISER) * len(part)).backward()
    return flat_gradient(network)


def exact_gradient(network: nn.Module, window: Batch, micro_batch_size: int) -> Tensor:
    """The same with yolofit's accumulation."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        window, num_classes = make_window(Path(folder))
    network = make_network(window, num_classes)
    whole = usual_gradient(network, window, NUM_IMAGES)  # one micro-batch: nothing is accumulated
    rows = []
    for size in SPLITS:
        errors = {
            name: float((accumulated(network, window, size) - whole).norm() / whole.norm())
            for name, accumulated in (("usual", usual_gradient), ("exact", exact_gradient))
        }
        rows.append({"micro_batch": size, "accumulate": NUM_IMAGES // size, **errors})
        print(rows[-1])
    result = {
        "what": "relative L2 error of the gradient against that of 16 images at once",
        "network": "yolo11n, fp32, BatchNorm frozen",
        "boxes_per_image": torch.bincount(window.image_index, minlength=NUM_IMAGES).tolist(),
        "rows": rows,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
