"""The storage tracker sees what is alive, and the recompute levels keep the bytes that they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.memory.simulate import StorageTracker, cuda_autocast_on_meta, simulate_step
from engine.memory.units import GIB
from models.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides
from models.recompute import apply_recompute


def yolo11l_peak_bytes(level: str, num_images: int, image_size: int) -> int:
    """Forward, loss, backward and AdamW step under fp16 autocast, 25 classes, ten boxes an image."""
    network = build_network("yolo11l", 25)
    loss = DetectionLoss(head_strides(network))
    network = network.to("meta")
    apply_recompute(network, level)
    boxes = torch.empty(10 * num_images, 4, device="meta")
    indices = torch.empty(10 * num_images, dtype=torch.int64, device="meta")
    step = simulate_step(
        network,
        torch.empty(num_images, 3, image_size, image_size, dtype=torch.float16, device="meta"),
        lambda predictions: LossGains().apply(loss(predictions, boxes, indices, indices)).sum(),
        torch.float16,
        torch.optim.AdamW(network.parameters(), foreach=False),
    )
    assert sum(step.breakdown_bytes.values()) == step.peak_bytes
    return step.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "image_size", "limit_gib"), [(16, 640, 4.2), (32, 640, 7.8), (32, 800, None)], ids=str
)
def test_simulate_step__recompute_levels_keep_their_promise(
    num_images: int, image_size: int, limit_gib: float | None
) -> None:
    none, elementwise, block = (
        yolo11l_peak_bytes(level, num_images, image_size) for level in ("none", "elementwise", "block")
    )
    assert elementwise <= 0.42 * none
    assert block <= 0.28 * none
    assert limit_gib is None or elementwise <= limit_gib * GIB


def test_storage_tracker__counts_each_storage_until_its_last_view_dies() -> None:
    with StorageTracker("cpu") as tracker:
        a = torch.zeros(1000)
        view = a[10:].view(10, 99)
        assert tracker.live_bytes == 4000
        del a
        assert tracker.live_bytes == 4000
        b = torch.zeros(500)
        del view
        assert tracker.live_bytes == 2000
        del b
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, 6000)


def test_storage_tracker__breakdown_adds_up_to_the_peak() -> None:
    layer = nn.Linear(100, 50, bias=False, device="meta")
    step = simulate_step(layer, torch.empty(8, 100, device="meta"), lambda out: out.sum(), round_to_bytes=1)
    assert step.breakdown_bytes["weights"] == 4 * 100 * 50
    assert step.breakdown_bytes["inputs"] == 4 * 8 * 100
    assert sum(step.breakdown_bytes.values()) == step.peak_bytes


def test_cuda_autocast_on_meta__casts_as_cuda_does() -> None:
    convolution = nn.Conv2d(3, 4, 1, device="meta")
    with cuda_autocast_on_meta(torch.float16):
        half = convolution(torch.empty(1, 3, 8, 8, device="meta"))
        assert half.dtype == torch.float16
        assert half.softmax(1).dtype == half.sum().dtype == torch.float32
        assert torch.cat([half, half.float()]).dtype == torch.float32
