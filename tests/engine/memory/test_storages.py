"""The storage tracker counts what is alive, and casts on the meta device equal those of CUDA."""

from __future__ import annotations

import torch
from torch import nn

from engine.memory.storages import StorageTracker, cuda_autocast_on_meta


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
    tracker = StorageTracker("meta", round_to_bytes=512)
    tracker.track(layer.parameters(), "weights")
    with tracker:
        with tracker.phase("inputs"):
            x = torch.empty(8, 100, device="meta")
        layer(x).sum().backward()
    breakdown = tracker.breakdown()
    assert breakdown["weights"] == 4 * 100 * 50
    assert breakdown["inputs"] == 4 * 8 * 100
    assert breakdown["allocator_rounding"] > 0
    assert sum(breakdown.values()) == tracker.peak_bytes


def test_cuda_autocast_on_meta__casts_as_cuda_does() -> None:
    convolution = nn.Conv2d(3, 4, 1, device="meta")
    with cuda_autocast_on_meta(torch.float16):
        half = convolution(torch.empty(1, 3, 8, 8, device="meta"))
        assert half.dtype == torch.float16
        assert half.softmax(1).dtype == half.sum().dtype == torch.float32
        assert torch.cat([half, half.float()]).dtype == torch.float32
