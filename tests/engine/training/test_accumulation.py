"""The gradient of a window does not depend on its split into micro-batches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.training.accumulation import AccumulationWindow, back_propagate
from models.detection.loss import DetectionLoss, LossGains
from models.network import head_strides, network_input
from tests.helpers.training import (
    copy_of,
    flat_gradient,
    flat_weights,
    make_lively_network,
    make_network,
    make_step,
    make_window,
    relative_error,
)

UNEVEN_COUNTS = [1, 12, 0, 3, 25, 2, 1, 8]
SIXTEEN = [*UNEVEN_COUNTS, 4, 0, 0, 7, 1, 30, 2, 5]


def window_gradient(network: nn.Module, window: Batch, sizes: list[int], scale: float | None = None) -> Tensor:
    """The accumulated gradient for micro-batches of the given sizes."""
    network = copy_of(network)
    dtype = next(network.parameters()).dtype
    loss = DetectionLoss(head_strides(network))
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    accumulation = AccumulationWindow(len(window), len(window.classes), torch.device("cpu"))
    for part in cut(window, sizes):
        predictions = network(network_input(part.images, dtype))
        sums = loss(predictions, part.boxes_xyxy_px, part.classes, part.image_index)
        accumulation.add(back_propagate(sums, LossGains(), accumulation.scale, scaler))
    accumulation.normalise(optimizer, scaler)
    return flat_gradient(network)


def cut(window: Batch, sizes: list[int]) -> list[Batch]:
    """Micro-batches of the given sizes, also those that `Batch.split` does not make."""
    ones = window.split(1)
    parts, start = [], 0
    for size in sizes:
        images = ones[start : start + size]
        counts = torch.tensor([len(image.classes) for image in images])
        parts.append(
            Batch(
                images=torch.cat([image.images for image in images]),
                boxes_xyxy_px=torch.cat([image.boxes_xyxy_px for image in images]),
                classes=torch.cat([image.classes for image in images]),
                image_index=torch.repeat_interleave(torch.arange(size), counts),
                names=[name for image in images for name in image.names],
            )
        )
        start += size
    assert start == len(window)
    return parts


@cache
def lively_reference() -> tuple[nn.Module, Batch, Tensor]:
    """A network, a window, and its gradient as one big batch in fp64."""
    network, window = make_lively_network(dtype=torch.float64), make_window(SIXTEEN)
    return network, window, window_gradient(network, window, [16])


@cache
def plain_reference() -> tuple[Batch, Tensor]:
    """The same for a network with its first weights."""
    window = make_window(SIXTEEN)
    return window, window_gradient(make_network(dtype=torch.float64), window, [16])


@pytest.mark.parametrize("sizes", [[8, 8], [4, 4, 4, 4], [1] * 16, [5, 5, 5, 1], [1, 15]], ids=str)
class TestSplitWindow:
    def test_fp64__equals_one_big_batch(self, sizes: list[int]) -> None:
        network, window, reference = lively_reference()
        assert relative_error(window_gradient(network, window, sizes), reference) <= 1e-12

    def test_fp32__equals_one_big_batch(self, sizes: list[int]) -> None:
        """Compares with the big batch in fp64: in fp32, its sum over 16 images has an error of 3e-6."""
        window, reference = plain_reference()
        assert relative_error(window_gradient(make_network(), window, sizes).double(), reference) <= 1e-6


@pytest.mark.parametrize("counts", [UNEVEN_COUNTS, [0, 0, 0, 5, 0, 0, 0, 0], [0] * 8], ids=str)
def test_window_gradient__equals_one_big_batch_with_uneven_and_empty_images(counts: list[int]) -> None:
    network = make_lively_network(dtype=torch.float64)
    window = make_window(counts)
    reference = window_gradient(network, window, [8])
    for sizes in ([1] * 8, [2] * 4, [3, 3, 2]):
        assert relative_error(window_gradient(network, window, sizes), reference) <= 1e-12


@settings(max_examples=10, deadline=None)
@given(counts=st.lists(st.integers(0, 20), min_size=2, max_size=6), data=st.data())
def test_window_gradient__any_cut_of_any_window(counts: list[int], data: st.DataObject) -> None:
    sizes, left = [], len(counts)
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    network = make_lively_network(dtype=torch.float64)
    window = make_window(counts)
    reference = window_gradient(network, window, [len(counts)])
    assert relative_error(window_gradient(network, window, sizes), reference) <= 1e-12


def test_window_gradient__independent_of_loss_scale() -> None:
    network = make_lively_network(dtype=torch.float64)
    window = make_window(UNEVEN_COUNTS)
    plain = window_gradient(network, window, [4, 4])
    assert relative_error(window_gradient(network, window, [4, 4], scale=2.0**16), plain) <= 1e-12


@pytest.mark.parity
def test_window_gradient__matches_reference() -> None:
    """A window's gradient equals that of Ultralytics' loss for one big batch; accumulating their losses does not."""
    from tests.helpers.reference import ultralytics_loss

    network = make_network(dtype=torch.float32)
    window = make_window(UNEVEN_COUNTS)
    ours = window_gradient(network, window, [2, 2, 2, 2])

    big = copy_of(network)
    ultralytics_loss(big, window).backward()
    # the reference computes targets in another order of operations: fp32 rounding
    assert relative_error(ours, flat_gradient(big)) <= 2e-5

    accumulated = copy_of(network)
    for part in window.split(2):
        ultralytics_loss(accumulated, part).backward()
    assert relative_error(flat_gradient(accumulated), flat_gradient(big)) > 0.02


@cache
def train_three_steps(micro_batch_size: int, dtype: torch.dtype) -> Tensor:
    network = make_network(dtype=dtype)
    step = make_step(network, micro_batch_size)
    for seed in range(3):
        step.run(make_window(SIXTEEN, seed=seed))
    return flat_weights(network)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_training_step__weights_after_three_steps_independent_of_micro_batch(
    micro_batch_size: int, dtype: torch.dtype, limit: float
) -> None:
    reference = train_three_steps(16, torch.float64)
    assert relative_error(train_three_steps(micro_batch_size, dtype).double(), reference) <= limit
    assert relative_error(reference, flat_weights(make_network(dtype=torch.float64))) > 1e-3


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "expected"), [(48, 20, [20, 20, 8]), (16, 5, [5, 5, 5, 1]), (3, 8, [3])]
)
def test_split__keeps_the_effective_batch(batch_size: int, micro_batch_size: int, expected: list[int]) -> None:
    window = make_window([1] * batch_size, image_size=32)
    assert [len(part) for part in window.split(micro_batch_size)] == expected


def test_back_propagate__keeps_gradients_in_range_however_crowded_the_images_are() -> None:
    """The sums of a window grow with its boxes. Times the provisional scale they must not, or fp16 overflows."""
    norms = []
    for num_boxes in (2, 20, 100):
        network, window = make_network(), make_window([num_boxes] * 2, image_size=128)
        accumulation = AccumulationWindow(len(window), len(window.classes), torch.device("cpu"))
        sums = make_step(network).loss_sums(window)
        back_propagate(sums, LossGains(), accumulation.scale, torch.amp.GradScaler("cpu", enabled=False))
        norms.append(float(flat_gradient(network).norm()))
    assert max(norms) < 3 * norms[0]
