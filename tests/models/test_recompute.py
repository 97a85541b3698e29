"""Recompute levels engage, change no number, and keep fewer bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.loss import DetectionLoss, LossGains
from models.network import batch_norms, build_network, freeze_batch_norms, head_strides, raw_predictions
from models.recompute import apply_recompute, remove_recompute
from models.recompute.rank import rank_layers
from tests.helpers.training import copy_of, flat_gradient, flat_weights, make_network, make_step, make_window

LEVELS = ["elementwise", "block"]
COUNTS = [3, 0, 5, 2]


def loss_and_gradient(network: nn.Module, autocast: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Loss of one window, and all its gradients in one vector."""
    window = make_window(COUNTS)
    images = window.images.to(next(network.parameters()).dtype) / 255
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        predictions = network(images)
    sums = DetectionLoss(head_strides(network))(
        predictions, window.boxes_xyxy_px, window.classes, window.image_index
    )
    value = LossGains().apply(sums).sum()
    value.backward()
    return value.detach(), flat_gradient(network)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class ConvolutionCounter(TorchDispatchMode):
    """Counts convolutions and matrix products, forward ones only."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("convolution", "mkldnn_convolution", "conv2d")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_apply_recompute__same_loss_gradients_and_statistics(
    level: str, frozen: bool, dtype: torch.dtype, limit: float
) -> None:
    plain = make_network(dtype=dtype, frozen=frozen)
    lean = copy_of(plain)
    apply_recompute(lean, level)
    (loss, gradient), (lean_loss, lean_gradient) = loss_and_gradient(plain), loss_and_gradient(lean)
    assert torch.equal(loss, lean_loss)
    assert relative(lean_gradient, gradient) <= limit
    for ours, theirs in zip(batch_norms(lean), batch_norms(plain), strict=True):
        assert torch.equal(ours.running_mean, theirs.running_mean)
        assert torch.equal(ours.running_var, theirs.running_var)
        assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == (0 if frozen else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11s", "yolo11m", "yolo11l", "yolo11x"])
@pytest.mark.parametrize("level", LEVELS)
def test_apply_recompute__every_network(name: str, level: str) -> None:
    torch.manual_seed(0)
    plain = build_network(name, 5)
    freeze_batch_norms(batch_norms(plain))
    lean = copy_of(plain)
    apply_recompute(lean, level)
    (loss, gradient), (lean_loss, lean_gradient) = loss_and_gradient(plain), loss_and_gradient(lean)
    assert torch.equal(loss, lean_loss)
    assert relative(lean_gradient, gradient) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
def test_apply_recompute__autocast_no_worse_than_none(level: str) -> None:
    _, truth = loss_and_gradient(make_network(dtype=torch.float64, frozen=False))
    _, plain = loss_and_gradient(make_network(frozen=False), torch.bfloat16)
    lean_network = make_network(frozen=False)
    apply_recompute(lean_network, level)
    _, lean = loss_and_gradient(lean_network, torch.bfloat16)
    assert relative(lean, truth) <= 1.1 * relative(plain, truth)


@pytest.mark.parametrize("level", LEVELS)
def test_apply_recompute__same_weights_after_five_accumulated_steps(level: str) -> None:
    plain = make_network(dtype=torch.float64)
    lean = copy_of(plain)
    plain_step, lean_step = make_step(plain, 3), make_step(lean, 3)
    apply_recompute(lean, level)
    for seed in range(5):
        for step in (plain_step, lean_step):
            step.run(make_window(COUNTS, seed=seed))
    assert relative(flat_weights(lean), flat_weights(plain)) <= 1e-10


@pytest.mark.parametrize(("level", "repeats"), [("none", False), ("elementwise", False), ("block", True)])
def test_apply_recompute__only_block_repeats_convolutions(level: str, repeats: bool) -> None:
    network = make_network(frozen=False)
    with ConvolutionCounter() as forward, torch.no_grad():
        network(torch.rand(1, 3, 64, 64))
    apply_recompute(network, level)
    with ConvolutionCounter() as step:
        loss_and_gradient(network)
    assert forward.count > 80
    assert (step.count > forward.count) == repeats


def test_apply_recompute__engages_and_can_be_undone() -> None:
    network = make_network(frozen=False)
    keys = list(network.state_dict())
    undo = apply_recompute(network, "elementwise")
    changed = [module for module in network.modules() if "forward" in vars(module)]
    assert len(changed) > 80
    assert list(network.state_dict()) == keys
    assert not any("forward" in vars(module) for module in make_network().modules())
    undo()
    assert not any("forward" in vars(module) for module in network.modules())


def test_apply_recompute__evaluation_is_untouched_and_copies_work() -> None:
    network = make_network(frozen=False)
    images = torch.rand(1, 3, 64, 64)
    expected = raw_predictions(copy_of(network).eval()(images))["boxes"]
    apply_recompute(network, "block")
    assert torch.equal(raw_predictions(network.eval()(images))["boxes"], expected)
    other = copy.deepcopy(network)
    remove_recompute(other)
    assert torch.equal(raw_predictions(other(images))["boxes"], expected)


def test_apply_recompute__rejects_what_does_not_exist() -> None:
    network = make_network()
    with pytest.raises(ValueError, match=r"model\.recompute: 'all': must be one of none, elementwise, block"):
        apply_recompute(network, "all")
    with pytest.raises(ValueError, match=r"model\.recompute: layer 24: must be between 0 and 23"):
        apply_recompute(network, "none", {24: "block"})


def test_rank_layers__early_layers_save_most_for_their_price() -> None:
    gains = rank_layers(make_network(), torch.empty(4, 3, 320, 320, device="meta"))
    rates = [gain.saved_bytes / gain.repeated_flops for gain in gains]
    assert rates == sorted(rates, reverse=True)
    assert gains[0].index < 5
    assert all(gain.saved_bytes > 0 and gain.repeated_flops > 0 for gain in gains)
