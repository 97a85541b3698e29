from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from models.network import (
    batch_norms,
    build_network,
    freeze_layers,
    head_strides,
    network_input,
    raw_predictions,
)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("yolo11n", 2_624_080),
        ("yolo11s", 9_458_752),
        ("yolo11m", 20_114_688),
        ("yolo11l", 25_372_160),
        ("yolo11x", 56_966_176),
    ],
)
def test_build_network__parameter_count_at_80_classes(name: str, num_parameters: int) -> None:
    assert sum(p.numel() for p in build_network(name, 80).parameters()) == num_parameters


@pytest.mark.parametrize("num_classes", [1, 25])
def test_build_network__predicts_every_anchor(num_classes: int) -> None:
    network = build_network("yolo11n", num_classes)
    images = torch.rand(2, 3, 64, 96)
    for mode in (True, False):
        predictions = raw_predictions(network.train(mode)(images))
        num_anchors = 8 * 12 + 4 * 6 + 2 * 3
        assert predictions["boxes"].shape == (2, 64, num_anchors)
        assert predictions["scores"].shape == (2, num_classes, num_anchors)
    assert head_strides(network) == [8, 16, 32]


def test_build_network__everything_trains_but_the_fixed_projection() -> None:
    frozen = [name for name, p in build_network("yolo11n", 2).named_parameters() if not p.requires_grad]
    assert frozen == ["model.23.dfl.conv.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_network_input__half_precision_is_the_rounded_fp32_value(dtype: torch.dtype) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(network_input(every_byte, dtype), (every_byte.float() / 255).to(dtype))


def test_freeze_layers__parameters_and_statistics() -> None:
    network = build_network("yolo11n", 2)
    freeze_layers(network, 3)
    assert not any(p.requires_grad for layer in network.model[:3] for p in layer.parameters())
    assert not any(norm.training for layer in network.model[:3] for norm in batch_norms(layer))
    assert all(norm.training for norm in batch_norms(network.model[3]))
    with pytest.raises(ValueError, match=r"model\.freeze_layers: 24: must be between 0 and 23"):
        freeze_layers(network, 24)


def test_import__touches_neither_the_network_nor_foreign_trainers() -> None:
    script = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("network access")
socket.getaddrinfo = socket.socket.connect = refuse
from models.network import build_network
build_network("yolo11n", 3)
foreign = ("ultralytics.engine", "ultralytics.data", "ultralytics.models")
print([name for name in sys.modules if name.startswith(foreign)])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"
