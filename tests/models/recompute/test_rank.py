"""Each single layer keeps fewer bytes by just as much as was predicted for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.memory.storages import StorageTracker, cuda_autocast_on_meta
from models.network import build_network
from models.recompute.levels import Level, apply_recompute
from models.recompute.rank import measure_layers, rank_layers
from tests.helpers.training import make_network

IMAGE_SIZE = 96


def meta_network(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    images = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype, device="meta")
    return build_network(name, 5).to("meta"), images


def start_tracking(network: nn.Module, images: Tensor) -> StorageTracker:
    tracker = StorageTracker("meta")
    tracker.track([*network.parameters(), *network.buffers(), images], "before")
    return tracker


def kept_bytes(network: nn.Module, images: Tensor, level: Level, per_layer: dict[int, Level] | None = None) -> int:
    """Bytes alive after forward, storage by storage."""
    apply_recompute(network, level, per_layer)
    tracker = start_tracking(network, images)
    before = tracker.live_bytes
    with tracker:
        predictions = network(images)
    del predictions["feats"]  # the loss looks at their sizes only
    return tracker.live_bytes - before


def test_measure_layers__elementwise_in_one_layer_saves_what_is_predicted() -> None:
    network, images = meta_network("yolo11n")
    none_bytes = kept_bytes(network, images, "none")
    saved = {layer.index: layer.none_bytes - layer.elementwise_bytes for layer in measure_layers(network, images)}
    predicted = {index: num_bytes for index, num_bytes in saved.items() if num_bytes > 0}
    measured = {i: none_bytes - kept_bytes(network, images, "none", {i: "elementwise"}) for i in predicted}
    assert measured == predicted
    assert set(saved) - set(predicted) == {11, 12, 14, 15, 18, 21}  # upsampling and concatenation


def test_rank_layers__block_in_one_layer_saves_what_is_predicted() -> None:
    network, images = meta_network("yolo11n")
    elementwise_bytes = kept_bytes(network, images, "elementwise")
    predicted = {gain.index: gain.saved_bytes for gain in rank_layers(network, images)}
    measured = {i: elementwise_bytes - kept_bytes(network, images, "elementwise", {i: "block"}) for i in predicted}
    assert measured == predicted
    assert set(predicted) == {2, 4, 6, 8, 9, 10, 13, 16, 19, 22, 23}


def test_measure_layers__predicts_every_layer_of_yolo11l_under_autocast() -> None:
    network, images = meta_network("yolo11l", torch.float16)
    autocast = cuda_autocast_on_meta(torch.float16)
    layers = measure_layers(network, images, autocast)
    measured = {level: kept_by_layer(network, images, level, autocast) for level in ("none", "elementwise", "block")}
    for i, layer in enumerate(layers):
        # At `none`, whether the output is kept depends on who takes it.
        assert measured["none"][i] - layer.none_bytes in (0, layer.output_bytes), layer
        predictions_bytes = layer.output_bytes if layer.name == "Detect" else 0
        assert measured["elementwise"][i] == layer.elementwise_bytes + predictions_bytes, layer
        assert measured["block"][i] == layer.block_bytes + predictions_bytes, layer


def kept_by_layer(network: nn.Module, images: Tensor, level: Level, autocast: TorchFunctionMode) -> list[int]:
    """Bytes alive after forward by the layer that made them, storage by storage."""
    apply_recompute(network, level)
    tracker = start_tracking(network, images)
    for i, layer in enumerate(network.model):
        layer.forward = partial(_in_phase, tracker.phase(str(i)), layer.forward)
    with tracker, autocast:
        predictions = network(images)
    del predictions["feats"]  # the loss looks at their sizes only
    for layer in network.model:
        del layer.forward
    tracker.reset_peak()
    kept = tracker.breakdown()
    return [kept.get(str(i), 0) for i in range(len(network.model))]


def _in_phase(phase: Any, forward: Callable[[Any], Any], x: Any) -> Any:
    with phase:
        return forward(x)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n-p2"])
def test_measure_layers__block_keeps_nothing_inside_the_head(name: str) -> None:
    """In branches of nested units, and of plain ones (``legacy``)."""
    network, images = meta_network(name)
    head = measure_layers(network, images)[-1]
    kept = {level: kept_bytes(network, images, "block", {head.index: level}) for level in ("elementwise", "block")}
    assert head.block_bytes == 0 < head.elementwise_bytes
    assert kept["elementwise"] - kept["block"] == head.elementwise_bytes


def test_measure_layers__the_head_is_a_fifth_of_what_block_would_keep_of_yolo11l() -> None:
    network = build_network("yolo11l", 25).to("meta")
    images = torch.empty(16, 3, 640, 640, dtype=torch.float16, device="meta")
    *others, head = measure_layers(network, images, cuda_autocast_on_meta(torch.float16))
    others_bytes = sum(layer.block_bytes for layer in others)
    assert others_bytes + head.block_bytes <= 0.8 * (others_bytes + head.elementwise_bytes)


def test_rank_layers__early_layers_save_most_for_their_price() -> None:
    gains = rank_layers(make_network(), torch.empty(4, 3, 320, 320, device="meta"))
    rates = [gain.saved_bytes / gain.repeated_flops for gain in gains]
    assert rates == sorted(rates, reverse=True)
    assert gains[0].index < 5
    assert all(gain.saved_bytes > 0 and gain.repeated_flops > 0 for gain in gains)
