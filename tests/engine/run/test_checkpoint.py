from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.run.checkpoint import load_network, load_weights, network_description
from models.network import build_network

NAMES = ["resistor", "capacitor", "chip"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A yolofit checkpoint with the averaged weights of a random yolo11n."""
    torch.manual_seed(0)
    network = build_network("yolo11n", 3)
    state = {f"ema.network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "yolofit": network_description("yolo11n", NAMES, 96)}, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def change(checkpoint: Path, **about: object) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    content["yolofit"] |= about
    torch.save(content, checkpoint)
    return checkpoint


def test_load_network__as_described(checkpoint: Path) -> None:
    loaded = load_network(checkpoint, "--ckpt_path")
    assert loaded.description == network_description("yolo11n", NAMES, 96, loaded.network.yaml)
    assert loaded.stride_px == 32
    assert not loaded.network.training
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"ema.network.{k}"], tensor) for k, tensor in loaded.network.state_dict().items())


def test_load_weights__into_other_classes(checkpoint: Path) -> None:
    network = build_network("yolo11n", 2)
    ours = network_description("yolo11n", ["chip", "coil"], 96)
    assert load_weights(network, checkpoint, ours, "model.weights").loaded_classes == ["chip"]


def test_load_weights__rejects_another_network(checkpoint: Path) -> None:
    network = build_network("yolo11s", 3)
    ours = network_description("yolo11s", NAMES, 96)
    message = f"model.weights: {checkpoint}: holds a yolo11n, the run's network is a yolo11s: set model.network to it"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_weights(network, checkpoint, ours, "model.weights")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"network": "yolov7"}, "holds a yolov7: give a yolofit checkpoint or an Ultralytics file"),
        ({"network": None}, "does not say which network it holds: give"),
        ({"network": "yolo11s"}, r"does not hold all of a yolo11s \("),
        ({"architecture": {"backbone": [], "head": []}}, r"backbone: must be a list of rows"),
        ({"class_names": ["a"] * 10**5}, "names 100000 classes, but its head tells 3 apart"),
    ],
)
def test_load_network__rejects_what_does_not_fit(checkpoint: Path, about: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--ckpt_path: {re.escape(str(checkpoint))}: {message}"):
        load_network(change(checkpoint, **about), "--ckpt_path")


def test_load_network__rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pt: no such file: nothing is downloaded"):
        load_network(tmp_path / "none.pt", "--ckpt_path")
