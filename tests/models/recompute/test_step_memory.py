"""A whole step on the CPU, storage by storage: no copy of all parameters, no predictions longer than needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import engine.training.step as step_module
from engine.memory.storages import StorageTracker
from models.recompute.levels import apply_recompute
from tests.helpers.training import make_network, make_step, make_window


def test_run__update_makes_no_copy_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    step = make_step(network, micro_batch_size=2)
    step.run(make_window([2, 1]))  # creates the optimizer's state
    tracker = StorageTracker("cpu")
    tracker.track([*network.state_dict().values(), *step.ema.state_dict().values()], "before")
    bursts: dict[str, int] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            tracker.reset_peak()
            before = tracker.live_bytes
            result = function(*args)
            bursts[name] = tracker.peak_bytes - before
            return result

        return call

    monkeypatch.setattr(step_module, "clip_gradients", watched("clip", step_module.clip_gradients))
    step.take_step = watched("optimizer", step.take_step)
    monkeypatch.setattr(step.ema, "update", watched("average", step.ema.update))
    with tracker:
        step.run(make_window([2, 1], seed=1))
    parameter_bytes = sum(parameter.nbytes for parameter in network.parameters())
    assert set(bursts) == {"clip", "optimizer", "average"}
    assert max(bursts.values()) < 0.01 * parameter_bytes, bursts


@pytest.mark.parametrize("level", ["none", "elementwise", "block"])
def test_run__predictions_are_gone_when_backward_reaches_the_network(level: str) -> None:
    network = make_network()
    apply_recompute(network, level)
    predictions: list[weakref.ref] = []
    alive: list[bool] = []

    def note(_: Any, __: Any, output: dict) -> None:
        predictions[:] = [weakref.ref(output[name].untyped_storage()) for name in ("boxes", "scores")]

    network.register_forward_hook(note)
    first_weight = network.model[22].cv2.conv.weight
    first_weight.register_post_accumulate_grad_hook(lambda _: alive.extend(ref() is not None for ref in predictions))
    make_step(network, micro_batch_size=2).run(make_window([2, 1]))
    assert alive == [False, False]
    assert torch.isfinite(first_weight).all()
