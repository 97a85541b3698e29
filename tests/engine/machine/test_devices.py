"""Which device a process trains on, and how many share a window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from engine.machine.devices import count_devices, device_of


@pytest.mark.parametrize(
    ("devices", "num_nodes", "expected"), [(1, 1, 1), ([0, 2], 1, 2), ("3", 2, 6), ("auto", 1, 1), (-1, 1, 1)]
)
def test_count_devices(devices: object, num_nodes: int, expected: int) -> None:
    trainer = SimpleNamespace(accelerator="cpu", devices=devices, num_nodes=num_nodes)
    assert count_devices(trainer) == expected


def test_device_of__follows_rank_and_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of(SimpleNamespace(accelerator="gpu", devices=[0, 2])) == torch.device("cuda", 2)
    assert device_of(SimpleNamespace(accelerator="auto", devices=2)) == torch.device("cuda", 1)
    assert device_of(SimpleNamespace(accelerator="cpu", devices=1)) == torch.device("cpu")
