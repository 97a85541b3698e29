"""A yolofit checkpoint without a training: random weights whose signals are alive and whose scores say something."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint import network_description
from models.network import batch_norms, build_network, detection_head

NAMES = ["resistor", "capacitor", "chip"]


def write_checkpoint(path: Path, image_size: int = 96) -> Path:
    """Write a yolo11n with three classes. BatchNorm statistics fit, and some scores are above 0.5."""
    torch.manual_seed(0)
    network = build_network("yolo11n", len(NAMES))
    for norm in batch_norms(network):
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(4, 3, 96, 96))
        for norm in batch_norms(network):
            norm.momentum = 0.03
        for branch in detection_head(network).cv3:
            branch[-1].weight.mul_(8)
            branch[-1].bias.fill_(-2.0)
    state = {f"ema.network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "yolofit": network_description("yolo11n", NAMES, image_size)}, path)
    return path
