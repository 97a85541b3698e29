from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.schedule import Schedule, ScheduleConfig


def trace(config: ScheduleConfig, epochs: int, steps: int, name: str = "sgd") -> list[dict[str, tuple]]:
    """Learning rate and momentum of each group at every optimizer step."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    optimizer = build_optimizer(network, OptimizerConfig(name=name, lr=0.01), batch_size=64)
    schedule = Schedule(config, epochs, steps)
    rows = []
    for step in range(epochs * steps):
        schedule.apply(optimizer, step, 0.01, 0.937)
        rows.append({g["name"]: (g["lr"], g.get("momentum")) for g in optimizer.param_groups})
    return rows


def reference(decay: str, epochs: int, steps: int, name: str = "sgd") -> list[dict[str, tuple]]:
    """The Ultralytics recipe: one rate per epoch, warm-up per batch while ni <= nw."""
    warmup = round(min(3, epochs - 1) * steps)
    rows = []
    for ni in range(epochs * steps):
        epoch = ni // steps
        if decay == "linear":
            lf = max(1 - epoch / epochs, 0) * (1 - 0.01) + 0.01
        else:
            lf = ((1 - math.cos(epoch * math.pi / epochs)) / 2) * (0.01 - 1) + 1
        row = {}
        for group in ("decay", "norm", "bias"):
            lr, momentum = 0.01 * lf, 0.937 if name == "sgd" else None
            if ni <= warmup:
                lr = float(np.interp(ni, [0, warmup], [0.1 if group == "bias" else 0.0, lr]))
                momentum = float(np.interp(ni, [0, warmup], [0.8, 0.937])) if name == "sgd" else None
            row[group] = (lr, momentum)
        rows.append(row)
    return rows


@pytest.mark.parity
@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_apply__matches_reference(decay: str, name: str) -> None:
    config = ScheduleConfig(decay=decay, per_epoch=True, warmup_bias_lr=0.1)
    ours, theirs = trace(config, 5, 7, name), reference(decay, 5, 7, name)
    for ours_row, their_row in zip(ours, theirs, strict=True):
        for group, values in their_row.items():
            assert ours_row[group] == pytest.approx(values, abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_apply__matches_reference_in_runs_shorter_than_the_warmup(epochs: int) -> None:
    config = ScheduleConfig(per_epoch=True, warmup_bias_lr=0.1)  # warms up for three epochs, if there are more
    ours, theirs = trace(config, epochs, 7), reference("linear", epochs, 7)
    assert [row["bias"] for row in ours] == [pytest.approx(row["bias"], abs=1e-12) for row in theirs]


def test_apply__the_last_epoch_is_never_part_of_the_warmup() -> None:
    rates = [row["decay"][0] for row in trace(ScheduleConfig(warmup_epochs=10, final_lr_fraction=1.0), 3, 20)]
    assert rates[39] < 0.01 and rates[40:] == [0.01] * 20


def test_apply__adamw_biases_start_at_zero_by_default() -> None:
    assert trace(ScheduleConfig(), 5, 7, "adamw")[0]["bias"][0] == 0.0


def test_apply__per_step_decay_reaches_the_end_and_is_monotone_after_warmup() -> None:
    rates = [row["decay"][0] for row in trace(ScheduleConfig(warmup_epochs=1), 5, 20)]
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * (0.01 + 0.99 / 100))


@given(epochs=st.integers(1, 20), steps=st.integers(1, 30), warmup=st.floats(0, 30))
def test_apply__never_negative_and_never_above_the_base_rate(epochs: int, steps: int, warmup: float) -> None:
    schedule = Schedule(ScheduleConfig(warmup_epochs=warmup), epochs, steps)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "name": "decay"}], lr=1)
    for step in range(epochs * steps + 2):
        schedule.apply(optimizer, step, lr=0.5, momentum=0.9)
        assert 0 <= optimizer.param_groups[0]["lr"] <= 0.5


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_schedule_config__rejects_a_momentum_that_would_never_fade(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"model\.schedule\.warmup_momentum: {momentum}: must be in \[0, 1\)"):
        ScheduleConfig(warmup_momentum=momentum)
