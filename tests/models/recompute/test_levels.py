"""Recompute levels engage, change no number, and keep fewer bytes."""

from __future__ import annotations

import copy
import gc
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.memory.storages import StorageTracker
from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.step import TrainingStep
from models.detection.loss import DetectionLoss, LossGains
from models.network import batch_norms, build_network, freeze_batch_norms, head_strides, raw_predictions
from models.recompute.levels import apply_recompute, remove_recompute
from models.recompute.norm_act import BatchNormAct
from tests.helpers.training import (
    NUM_CLASSES,
    copy_of,
    flat_gradient,
    flat_weights,
    make_network,
    make_step,
    make_window,
)

LEVELS = ["elementwise", "block"]
COUNTS = [3, 0, 5, 2]


def loss_and_gradient(network: nn.Module, autocast: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Loss of one window, and all its gradients in one vector."""
    window = make_window(COUNTS)
    images = window.images.to(next(network.parameters()).dtype) / 255
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        predictions = network(images)
    sums = DetectionLoss(head_strides(network))(predictions, window.boxes_xyxy_px, window.classes, window.image_index)
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
@pytest.mark.parametrize("countdown", [1, 45, 60, 75])
def test_apply_recompute__an_error_in_backward_leaves_nothing_behind(
    level: str, countdown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out: at a convolution that is repeated, or in the backward pass of one."""
    network = make_network()
    apply_recompute(network, level)
    conv_forward, conv_backward = nn.Conv2d.forward, BatchNormAct.backward
    left = [0]

    def fail_in_time() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("injected")

    def forward(module: nn.Conv2d, x: Tensor) -> Tensor:
        fail_in_time()
        return conv_forward(module, x)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fail_in_time()
        return conv_backward(ctx, *grads)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    monkeypatch.setattr(BatchNormAct, "backward", staticmethod(backward))

    def try_step(fails: bool) -> int:
        predictions = raw_predictions(network(make_window(COUNTS).images / 255))
        left[0] = countdown if fails else 0
        loss = predictions["boxes"].square().sum() + predictions["scores"].square().sum()
        with suppress(torch.OutOfMemoryError):  # pytest.raises would hold on to the frames
            loss.backward()
        assert (left[0] == 0) == fails
        left[0] = 0
        network.zero_grad()
        del predictions, loss
        gc.collect()
        return tracker.live_bytes

    with StorageTracker("cpu") as tracker:
        before = try_step(fails=False)
        for _ in range(3):
            try_step(fails=True)
        assert try_step(fails=False) == before  # only now: on a CPU, autograd's queue holds what it did not get to


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
@pytest.mark.parametrize("name", ["yolo11s", "yolo11m", "yolo11x"])
def test_apply_recompute__every_network(name: str) -> None:
    """Of yolo11l, three steps are taken below."""
    torch.manual_seed(0)
    plain = build_network(name, 5)
    freeze_batch_norms(batch_norms(plain))
    leans = {level: copy_of(plain) for level in LEVELS}
    loss, gradient = loss_and_gradient(plain)
    for level, lean in leans.items():
        apply_recompute(lean, level)
        lean_loss, lean_gradient = loss_and_gradient(lean)
        assert torch.equal(loss, lean_loss), level
        assert relative(lean_gradient, gradient) <= 1e-5, level


@pytest.mark.parametrize("name", ["yolo11n", pytest.param("yolo11l", marks=pytest.mark.slow)])
def test_apply_recompute__autocast_no_worse_than_none(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, NUM_CLASSES)
    _, truth = loss_and_gradient(copy_of(network).double())
    _, plain = loss_and_gradient(copy_of(network), torch.bfloat16)
    for level in LEVELS:
        lean_network = copy_of(network)
        apply_recompute(lean_network, level)
        _, lean = loss_and_gradient(lean_network, torch.bfloat16)
        assert relative(lean, truth) <= 1.1 * relative(plain, truth), level


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("frozen", [False, True])
def test_apply_recompute__same_training_after_five_accumulated_steps(level: str, frozen: bool) -> None:
    """Weights, batch statistics and their averages, in windows of two micro-batches."""
    plain = make_network(dtype=torch.float64, frozen=frozen)
    lean = copy_of(plain)
    plain_step, lean_step = make_sgd_step(plain), make_sgd_step(lean)
    apply_recompute(lean, level)
    take_steps(plain_step, 5)
    take_steps(lean_step, 5)
    assert relative(flat_weights(lean), flat_weights(plain)) <= 1e-10
    for ours, theirs in ((lean, plain), (lean_step.ema.network, plain_step.ema.network)):
        expected = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-8, atol=1e-10, msg=name)
    counts = {int(norm.num_batches_tracked) for norm in batch_norms(lean)}
    assert counts == {0 if frozen else 10}
    assert not any("forward" in vars(module) for module in lean_step.ema.network.modules())


@pytest.mark.slow
def test_apply_recompute__same_weights_of_yolo11l_after_five_steps() -> None:
    torch.manual_seed(0)
    plain = build_network("yolo11l", NUM_CLASSES).double()
    freeze_batch_norms(batch_norms(plain))
    networks = {level: copy_of(plain) for level in ("none", *LEVELS)}
    for level, network in networks.items():
        apply_recompute(network, level)
        take_steps(make_step(network, 2), 5, counts=[3, 2])
    for level in LEVELS:
        assert relative(flat_weights(networks[level]), flat_weights(networks["none"])) <= 1e-10


def take_steps(step: TrainingStep, num_steps: int, counts: list[int] = COUNTS) -> None:
    for seed in range(num_steps):
        step.run(make_window(counts, seed=seed))


def make_sgd_step(network: nn.Module) -> TrainingStep:
    """AdamW would blow up the rounding of gradients that are 0 in exact arithmetic, as BatchNorm makes some."""
    optimizer = build_optimizer(network, OptimizerConfig(name="sgd"), batch_size=16)
    return make_step(network, micro_batch_size=2, optimizer=optimizer)


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
    apply_recompute(network, "elementwise")
    changed = [module for module in network.modules() if "forward" in vars(module)]
    assert len(changed) > 80
    assert list(network.state_dict()) == keys
    assert not any("forward" in vars(module) for module in make_network().modules())
    remove_recompute(network)
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


@pytest.mark.parametrize("level", ["none", "elementwise", "block"])
def test_apply_recompute__refuses_one_value_per_channel_as_pytorch_does(level: str) -> None:
    network = make_network(frozen=False)
    apply_recompute(network, level)
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        network(torch.rand(1, 3, 32, 32))
    assert all(norm.running_var.isfinite().all() for norm in batch_norms(network))
