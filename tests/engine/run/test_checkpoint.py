from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.run.checkpoint import check_classes, load_network, load_weights, network_description
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
    assert loaded.description == network_description("yolo11n", NAMES, 96)
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
        ({"network": "yolov8n"}, "holds a yolov8n: give a yolofit checkpoint or an Ultralytics file"),
        ({"network": None}, "does not say which network it holds: give"),
        ({"network": "yolo11s"}, r"does not hold all of a yolo11s \("),
        ({"class_names": ["a"] * 10**5}, "names 100000 classes, but its head has 3"),
    ],
)
def test_load_network__rejects_what_does_not_fit(checkpoint: Path, about: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--ckpt_path: {re.escape(str(checkpoint))}: {message}"):
        load_network(change(checkpoint, **about), "--ckpt_path")


def test_load_network__rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pt: no such file: nothing is downloaded"):
        load_network(tmp_path / "none.pt", "--ckpt_path")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["ic", "led"], ["ic", "led"]),
        (["ic", "led"], ["집적 회로", "LED"]),  # translated
        (["class 0", "class 1"], ["ic", "led"]),  # a file without names
    ],
)
def test_check_classes__numbers_count(theirs: list[str], ours: list[str]) -> None:
    check_classes(theirs, ours, "--ckpt_path")


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (["led", "ic"], ["ic", "led"], "ic is its class 1, the data set's 0"),
        (list("abcde"), ["ic"], "it has 5 classes (a, b, c, ...), the data set 1 (ic)"),
    ],
)
def test_check_classes__says_where_they_part(theirs: list[str], ours: list[str], message: str) -> None:
    full = f"--ckpt_path: {message}: use the data.yaml that it was trained with"
    with pytest.raises(ConfigError, match=f"^{re.escape(full)}$"):
        check_classes(theirs, ours, "--ckpt_path")
