"""One optimizer step as a whole: what it changes and what it skips."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.training.ema import EmaConfig, WeightAverage
from engine.training.nonfinite import NonFiniteGuard
from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.precision import assert_fp32
from models.network import batch_norms
from tests.helpers.training import copy_of, flat_weights, make_network, make_step, make_window, relative_error

COUNTS = [2, 0, 5, 1]


def poison(network: torch.nn.Module, bad: float, at_forward: int) -> list[int]:
    """Multiply the network's output by ``bad`` at one of its forward passes; returns the running count."""
    calls = [0]

    def hook(module: torch.nn.Module, inputs: tuple, output: dict) -> dict:
        calls[0] += 1
        return output | {"boxes": output["boxes"] * bad} if calls[0] == at_forward else output

    network.register_forward_hook(hook)
    return calls


def test_run__returns_the_outcome_of_the_window_before() -> None:
    step = make_step(make_network(), micro_batch_size=2)
    assert step.run(make_window(COUNTS)) is None
    outcome = step.run(make_window(COUNTS, seed=1))
    assert outcome.finite and outcome.box_loss > 0 and outcome.grad_norm > 0
    assert step.num_steps_taken == 1
    assert step.settle() is not None and step.settle() is None
    assert step.num_steps_taken == 2


def test_run__frees_gradients() -> None:
    network = make_network()
    make_step(network, micro_batch_size=2).run(make_window(COUNTS))
    assert all(p.grad is None for p in network.parameters())


def test_run__learning_rate_follows_the_steps_taken_not_the_micro_batches() -> None:
    rates = {}
    for micro_batch_size in (1, 4):
        step = make_step(make_network(), micro_batch_size)
        rates[micro_batch_size] = []
        for seed in range(5):
            step.run(make_window(COUNTS, seed=seed))
            rates[micro_batch_size].append(step.optimizer.param_groups[0]["lr"])
    assert rates[1] == rates[4]
    assert len(set(rates[1])) == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at_forward", [3, 4])
def test_run__skips_a_window_with_one_bad_micro_batch(
    bad: float, at_forward: int, caplog: pytest.LogCaptureFixture
) -> None:
    network = make_network(frozen=False)
    poison(network, bad, at_forward)
    step = make_step(network, micro_batch_size=2)
    windows = [make_window(COUNTS, seed=seed) for seed in range(3)]
    step.run(windows[0])
    before = {name: tensor.clone() for name, tensor in step.network.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in step.ema.state_dict().items()}

    step.run(windows[1])  # forward passes 3 and 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in step.ema.state_dict().items())

    with caplog.at_level(logging.WARNING):
        outcome = step.run(windows[2])
    assert not outcome.finite
    assert "image0.jpg" in caplog.text and "image3.jpg" in caplog.text
    step.settle()
    assert step.num_steps_taken == 2 and step.guard.num_skipped == 1
    assert torch.isfinite(flat_weights(network)).all()


def test_run__skipping_equals_never_having_seen_the_window() -> None:
    start = make_network(frozen=False)
    plain, poisoned = copy_of(start), copy_of(start)
    poison(poisoned, float("nan"), 2)
    windows = [make_window(COUNTS, seed=seed) for seed in range(3)]
    plain_step, poisoned_step = make_step(plain), make_step(poisoned)
    for window in (windows[0], windows[2]):
        plain_step.run(window)
    for window in windows:
        poisoned_step.run(window)
    assert torch.equal(flat_weights(plain), flat_weights(poisoned))
    for ours, theirs in zip(batch_norms(plain), batch_norms(poisoned), strict=True):
        assert torch.equal(ours.running_var, theirs.running_var)
        assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def spoil(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    norm.running_var.data[3] = float("nan")  # like a variance that overflows


def test_run__skips_a_window_that_spoils_only_the_statistics(caplog: pytest.LogCaptureFixture) -> None:
    network = make_network(frozen=False)
    step = make_step(network)
    before = copy_of(network)
    with network.model[0].bn.register_forward_hook(spoil), caplog.at_level(logging.WARNING):
        step.run(make_window(COUNTS))
        outcome = step.settle()
    assert not outcome.finite and math.isfinite(outcome.grad_norm)
    assert "BatchNorm" in caplog.text
    for name, tensor in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
        assert torch.equal(step.ema.network.state_dict()[name], tensor), name
    step.run(make_window(COUNTS))
    assert step.settle().finite and step.num_steps_taken == 1


@pytest.mark.parametrize("recompute", ["none", "elementwise", "block"])
def test_run__refuses_one_value_per_channel_at_every_level(recompute: str) -> None:
    network = make_network(frozen=False)
    step = make_step(network, micro_batch_size=2)
    step.memory._set(2, recompute)
    before = copy_of(network).state_dict()
    with pytest.raises(TrainingError, match=r"^data\.image_size: 32 x 32 px: a micro-batch of a single image .*larger"):
        step.run(make_window([1, 1, 1], image_size=32))  # 2 images, then 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    step.run(make_window([1, 1], image_size=32))
    assert step.settle().finite


def test_run__takes_one_value_per_channel_where_statistics_are_frozen() -> None:
    step = make_step(make_network(frozen=True), micro_batch_size=1)
    step.run(make_window([1], image_size=32))
    assert step.settle().finite


@pytest.mark.parametrize("at", [1, 2, 4])
def test_run__ends_with_the_statistics_of_the_last_good_window(at: int) -> None:
    """The run may write ``last.ckpt`` when it ends, during the window after the skipped ones."""
    network = make_network(frozen=False)
    step = make_step(network, guard=NonFiniteGuard(max_in_a_row=1))
    step.guard.diagnose = lambda: str(network(torch.rand(4, 3, 64, 64)).keys())  # changes the statistics too
    for seed in range(at - 1):
        step.run(make_window(COUNTS, seed=seed))
    step.settle()
    before = copy_of(network).state_dict()
    poison(network, float("nan"), 1)
    step.run(make_window(COUNTS))
    with pytest.raises(TrainingError):
        step.run(make_window(COUNTS, seed=7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_run__ends_after_too_many_bad_windows() -> None:
    network = make_network()
    network.register_forward_hook(lambda module, inputs, output: output | {"boxes": output["boxes"] * float("nan")})
    step = make_step(network, guard=NonFiniteGuard(max_in_a_row=3))
    with pytest.raises(TrainingError, match=r"3 windows in a row .* image0.jpg"):
        for _ in range(10):
            step.run(make_window(COUNTS))
    assert step.guard.num_skipped == 3


def test_run__scaler_unscales_once_and_backs_off_on_overflow() -> None:
    network = make_network()
    reference = copy_of(network)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = make_step(network, micro_batch_size=1, scaler=scaler)
    step.run(make_window(COUNTS))
    plain = make_step(reference, micro_batch_size=1)
    plain.run(make_window(COUNTS))
    assert relative_error(flat_weights(network), flat_weights(reference)) < 1e-6

    poison(network, float("inf"), 1)
    step.run(make_window(COUNTS))
    step.settle()
    assert scaler.get_scale() == 2.0**9
    assert step.num_steps_taken == 1


def test_state_dict__restores_steps_and_scale() -> None:
    step = make_step(make_network(), micro_batch_size=2, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    step.run(make_window(COUNTS))
    state = step.state_dict()
    other = make_step(make_network(), micro_batch_size=2, scaler=torch.amp.GradScaler("cpu"))
    other.load_state_dict(state)
    assert other.num_steps_taken == 1
    assert other.scaler.get_scale() == 8.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_run__keeps_weights_and_states_fp32(precision: str, name: str) -> None:
    network = make_network(frozen=False)
    config = OptimizerConfig(name=name)
    step = make_step(network, micro_batch_size=2, precision=precision, optimizer=build_optimizer(network, config, 16))
    dtypes = []
    network.model[0].conv.register_forward_hook(lambda m, i, output: dtypes.append(output.dtype))
    step.run(make_window(COUNTS))
    assert set(dtypes) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert_fp32(network, step.optimizer)
    num_trained = sum(p.requires_grad for p in network.parameters())
    assert len(step.optimizer.state) == num_trained > 200


def test_assert_fp32__names_what_is_not() -> None:
    network = make_network()
    step = make_step(network, micro_batch_size=2)
    step.run(make_window(COUNTS))
    state = next(iter(step.optimizer.state.values()))
    state["exp_avg"] = state["exp_avg"].half()
    with pytest.raises(AssertionError, match=r"exp_avg is torch\.float16"):
        assert_fp32(network, step.optimizer)
    with pytest.raises(AssertionError, match=r"parameter model\.0\.conv\.weight is torch\.float16"):
        assert_fp32(network.half(), step.optimizer)


def test_run__averages_weights_with_the_number_of_the_step() -> None:
    """docs/configuration.md: the decay at update t, counted from 1, is ``decay * (1 - exp(-t / ramp_steps))``."""
    network = make_network()
    ema = WeightAverage(network, EmaConfig(decay=0.9, ramp_steps=2.0))
    step = make_step(network, ema=ema)
    expected = flat_weights(network).double()
    for t in (1, 2, 3):
        step.run(make_window(COUNTS, seed=t))
        decay = 0.9 * (1 - math.exp(-t / 2.0))
        expected = decay * expected + (1 - decay) * flat_weights(network)
    torch.testing.assert_close(flat_weights(ema.network).double(), expected, rtol=1e-6, atol=1e-7)


def test_state_dict__restores_lowered_settings() -> None:
    step, other = (make_step(make_network(), micro_batch_size=4) for _ in range(2))
    step.memory.lower("CUDA out of memory", step=0)
    step.memory.lower("CUDA out of memory", step=0)
    other.load_state_dict(step.state_dict())
    assert (other.memory.micro_batch_size, other.memory.recompute) == (2, "elementwise")
    assert other.memory.history == step.memory.history
