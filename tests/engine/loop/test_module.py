from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.loop.module import Detector
from engine.training.config import ModelConfig
from models import network
from models.detection import boxes
from models.recompute import norm_act
from tests.helpers.training import make_step, make_window


def test_detector__releases_captured_graphs_before_validation() -> None:
    module = Detector(ModelConfig("yolo11n", recompute="none"), ["a"], 4, 2, 64)
    module.on_validation_start()  # a validation without training has none
    released: list[bool] = []
    module.step = SimpleNamespace(micro_step=SimpleNamespace(release=lambda: released.append(True)))
    module.on_validation_start()
    assert released == [True]


def test_detector__keeps_its_kernels_beside_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the kernels when each of two trains, taken in turn."""
    asked: set[str] = set()

    def kernels_for(x: torch.Tensor, fused_kernels: bool) -> object:
        asked.add("fused layers" if fused_kernels else "layers")
        return norm_act

    monkeypatch.setattr(norm_act, "kernels_for", kernels_for)
    monkeypatch.setattr(network, "fused_kernels_work", lambda images: asked.add("fused input"))
    monkeypatch.setattr(boxes, "fused_kernels_work", lambda logits: asked.add("fused boxes"))
    config = ModelConfig("yolo11n", recompute="elementwise")
    detectors = {
        fused: Detector(replace(config, fused_kernels=fused), list("abcde"), 8, 8, 64) for fused in (True, False)
    }
    for fused in (True, False, True):
        asked.clear()
        detector = detectors[fused]
        step = make_step(detector.network, config=detector.config, loss=detector.loss, memory=detector.memory)
        step.run(make_window([1, 2]))
        step.memory.lower("out of memory", 0)  # applies the levels again
        step.run(make_window([1, 2]))
        assert asked == ({"fused layers", "fused input", "fused boxes"} if fused else {"layers"})
