from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.run.checkpoint import (
    base_network,
    check_classes,
    check_weights,
    load_network,
    load_weights,
    network_description,
    network_in,
)
from models.network import build_network
from models.weights.saved_weights import SavedWeights

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
    ("network", "base"),
    [
        ("yolo11n-seg", "yolo11n"),
        ("yolov8n-p2", "yolov8n"),
        ("yolov8n-p2.yaml", "yolov8n"),
        ("yolov5su.pt", "yolov5s"),
        ("yolov3-tiny", "yolov3"),
        ("boards.yaml", None),
        ("yolov8n-boards.yaml", None),
    ],
)
def test_base_network__is_the_same_up_to_the_head(network: str, base: str | None) -> None:
    assert base_network(network) == base


def test_check_weights__lets_relatives_and_own_networks_start(checkpoint: Path) -> None:
    for network in ("yolo11n", "boards.yaml"):
        check_weights(checkpoint, network, "model.weights")
    change(checkpoint, network="yolov8n")
    check_weights(checkpoint, "yolov8n-p2", "model.weights")
    with pytest.raises(ConfigError, match=r"holds a yolov8n, the run's network is a yolov8s-p2: set"):
        check_weights(checkpoint, "yolov8s-p2", "model.weights")


def test_network_in__names_detectors_and_those_of_other_tasks() -> None:
    detector, segmenter = (build_network("yolov8n", 3).yaml for _ in range(2))
    segmenter["head"][-1] = [[15, 18, 21], 1, "Segment", ["nc", 32, 256]]
    for name, architecture, expected in (
        ("yolo11n", None, "yolo11n"),
        ("yolov8n-boards", detector, "yolov8n-boards"),
        ("yolov8n-seg", segmenter, "yolov8n"),
        ("boards", segmenter, None),
        (None, detector, None),
    ):
        assert network_in(SavedWeights("x", {}, name, architecture=architecture)) == expected


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
        (list("abcde"), ["ic"], "it has 5 classes (a, b, c and 2 more), the data set 1 (ic)"),
    ],
)
def test_check_classes__says_where_they_part(theirs: list[str], ours: list[str], message: str) -> None:
    full = f"--ckpt_path: {message}: use the data.yaml that it was trained with"
    with pytest.raises(ConfigError, match=f"^{re.escape(full)}$"):
        check_classes(theirs, ours, "--ckpt_path")
