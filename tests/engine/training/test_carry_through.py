"""Memory runs out at every single operation of a step, one after the other; the result is always the same.

The network has two layers. Its passes are the same bit for bit at the next lower settings, so every difference shows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.errors import TrainingError
from engine.training.carry_through import carry_through
from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.out_of_memory import RecoveryHooks
from engine.training.step import TrainingStep
from models.detection.loss import LossSums
from tests.helpers.faults import OutOfMemoryAt
from tests.helpers.training import make_step, make_window

WINDOWS = [make_window([2, 0, 1], seed=seed, image_size=16) for seed in range(2)]


class TinyNetwork(nn.Module):
    """Two layers that no recompute level changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        head = nn.Identity()
        head.stride = torch.tensor([4])
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2), head)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def tiny_step(
    optimizer: str,
    scaled: bool,
    poisoned: bool = False,
    hooks: RecoveryHooks = RecoveryHooks(),  # noqa: B008  frozen
) -> TrainingStep:
    network = TinyNetwork()
    step = make_step(
        network,
        micro_batch_size=2,
        optimizer=build_optimizer(network, OptimizerConfig(optimizer), 16),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2, enabled=scaled),
        hooks=hooks,
    )

    def loss_sums(batch: Batch) -> LossSums:
        means = network(batch.images / 255).square().mean((0, 2, 3)) * (float("inf") if poisoned else 1.0)
        return LossSums(means[0], means[1], means[2], means[3].detach())

    step.loss_sums = loss_sums
    return step


def everything(step: TrainingStep) -> Iterator[tuple[str, Any]]:
    """Everything that a step changes and that a later step or a checkpoint reads."""
    yield from step.network.state_dict(prefix="network.").items()
    yield from step.ema.state_dict(prefix="ema.").items()
    for number, state in step.optimizer.state_dict()["state"].items():
        yield from ((f"optimizer.{number}.{name}", value) for name, value in state.items())
    yield from ((f"gradient.{name}", p.grad) for name, p in step.network.named_parameters())
    yield from step.scaler.state_dict().items()
    yield "steps taken", step.num_steps_taken
    yield "skipped", step.guard.num_skipped


def after(step: TrainingStep, first_under: Any = None, windows: list[Batch] = WINDOWS) -> dict[str, Any]:
    """State and outcomes after some steps; the first one runs under a dispatch mode."""
    outcomes = []
    for window in windows:
        with first_under if window is windows[0] and first_under is not None else nullcontext():
            outcomes.append(step.run(window))
    outcomes.append(step.settle())
    return dict(everything(step)) | {"outcomes": outcomes}


def differences(actual: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    assert actual.keys() == expected.keys()
    return [name for name, value in expected.items() if not same(actual[name], value)]


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(b, Tensor) else repr(a) == repr(b)  # NaN equals NaN


@pytest.fixture(autouse=True)
def collects_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip garbage collection, which takes 0.1 seconds per failure."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.parametrize("poisoned", [False, True], ids=["used", "skipped"])
@pytest.mark.parametrize(("optimizer", "scaled"), [("adamw", True), ("sgd", False)])
def test_run__is_the_same_wherever_memory_runs_out(optimizer: str, scaled: bool, poisoned: bool) -> None:
    counter = OutOfMemoryAt(None)
    expected = after(tiny_step(optimizer, scaled, poisoned), counter)
    assert len(counter.names) > 150
    for name in ("aten::_fused_", "aten::convolution_backward", "aten::_foreach_norm", "aten::where"):
        assert any(seen.startswith(name) for seen in counter.names), name
    for number, name in enumerate(counter.names):
        step = tiny_step(optimizer, scaled, poisoned)
        actual = after(step, OutOfMemoryAt(number))
        assert not differences(actual, expected), f"memory ran out at operation {number}, {name}"
        assert [lowering.recompute for lowering in step.memory.history] == ["elementwise"]


def test_carry_through__does_each_operation_once() -> None:
    """Memory runs out between two operations, in Python, and again at the next one."""
    total, failures = torch.zeros(()), iter([True, True, False])
    causes: list[str] = []

    def work() -> Tensor:
        double = total.add_(1) * 2
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")
        return double.add_(total)

    assert float(carry_through(work, causes.append)) == 3
    assert float(total) == 1
    assert causes == ["CUDA out of memory (tried to allocate 2.00 GiB)"] * 2


def test_carry_through__lets_other_errors_through() -> None:
    def work() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        carry_through(work, lambda cause: None)


def test_run__ends_with_one_line_if_memory_runs_out_again_and_again() -> None:
    step = tiny_step("adamw", False, hooks=RecoveryHooks(what_fits=lambda: "use data.image_size 448"))

    def never() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    step.take_step = never
    with pytest.raises(TrainingError, match=r"2\.00 GiB.*use data\.image_size 448"):
        step.run(WINDOWS[0])
