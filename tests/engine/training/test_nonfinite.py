from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from engine.training.nonfinite import NonFiniteGuard, find_origin
from models.recompute.levels import apply_recompute
from tests.helpers.training import flat_weights, make_network, make_step, make_window

COUNTS = [2, 1, 3, 2]
NAN = float("nan")


def origin(network: nn.Module, micro_batch_size: int = 2) -> str:
    step = make_step(network, micro_batch_size)
    return find_origin(network, list(make_window(COUNTS).split(micro_batch_size)), step.loss_sums)


def spoil_third_image(network: nn.Module, layer: nn.Module) -> None:
    """The layer's output is inf for the third image of a window."""
    starts = [0, 0]

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        starts.append(starts[-1] + len(inputs[0]))

    def spoil(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        row = 2 - starts[-2]
        if 0 <= row < len(output):
            output = output.clone()
            output[row, 0, 0, 0] = float("inf")
        return output

    network.register_forward_pre_hook(count)
    layer.register_forward_hook(spoil)


@pytest.mark.parametrize("level", ["none", "elementwise", "block"])
@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_find_origin__names_layer_and_image(level: str, micro_batch_size: int) -> None:
    network = make_network(frozen=False)
    apply_recompute(network, level)
    spoil_third_image(network, network.model[9].cv1.conv)
    assert origin(network, micro_batch_size) == "the output of model.9.cv1.conv, of image2.jpg"


def test_find_origin__names_a_weight() -> None:
    network = make_network()
    with torch.no_grad():
        network.model[3].conv.weight[0, 0, 0, 0] = NAN
    assert origin(network) == "the weight model.3.conv.weight"


def test_find_origin__names_the_loss() -> None:
    network = make_network()
    network.register_forward_hook(lambda module, inputs, output: output | {"boxes": output["boxes"] * NAN})
    assert origin(network) == "the box, cls, dfl loss of image0.jpg, image1.jpg"


def test_find_origin__names_the_gradient_of_a_layer() -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[1] = NAN
            return gradient

    network = make_network()
    network.model[4].register_forward_hook(lambda module, inputs, output: Spoil.apply(output))
    assert origin(network) == "the gradient of the output of model.4.cv2.bn, of image1.jpg"


def test_find_origin__finds_nothing_in_a_good_window_and_leaves_the_weights() -> None:
    network = make_network()
    before = flat_weights(network)
    assert origin(network) == ""
    assert torch.equal(flat_weights(network), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_guard__ends_with_the_diagnosis_after_as_many_as_allowed(caplog: pytest.LogCaptureFixture) -> None:
    guard = NonFiniteGuard(2, lambda: "the output of model.9.cv1.conv, of b.jpg")
    for finite in (False, True, False):
        guard.record(finite, ["a.jpg"])
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            TrainingError,
            match=r"^2 windows in a row had an inf or NaN gradient, the last with b\.jpg; it begins in the output of "
            r"model\.9\.cv1\.conv, of b\.jpg\. Lower model\.optimizer\.lr, ",
        ),
    ):
        guard.record(False, ["b.jpg"])
    assert guard.num_skipped == 3
    assert "skipped (3 in total)" in caplog.text


def test_guard__shows_a_few_names_of_a_large_window(caplog: pytest.LogCaptureFixture) -> None:
    guard = NonFiniteGuard(2)
    with caplog.at_level(logging.WARNING):
        guard.record(False, [f"{number}.jpg" for number in range(20)])
    assert "7.jpg and 12 more" in caplog.text
    assert "8.jpg" not in caplog.text
