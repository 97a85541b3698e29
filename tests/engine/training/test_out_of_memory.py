"""Memory that runs out anywhere in a step costs an attempt, never an image or a gradient."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.errors import TrainingError
from engine.training.out_of_memory import MemorySettings, RecoveryHooks, in_parts, is_out_of_memory, retry
from engine.training.step import TrainingStep
from models.network import batch_norms
from tests.helpers.training import (
    flat_weights,
    make_lively_network,
    make_network,
    make_step,
    make_window,
    relative_error,
)

COUNTS = [3, 0, 5, 2, 1, 7, 0, 4]
CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.99 GiB of which 0 bytes is free. "
    "Including non-PyTorch memory, this process has 15.20 GiB memory in use."
)
NUM_WINDOWS = 4
PLACES = ("forward", "loss", "backward", "optimizer")


class Faults:
    """Raises an out-of-memory error at one place of a training step, at given calls of that place."""

    def __init__(self, step: TrainingStep, place: str, calls: set[int]) -> None:
        self.calls, self.num_calls, self.num_raised = calls, 0, 0
        if place == "forward":
            step.network.model[10].register_forward_pre_hook(lambda *_: self.strike())
        elif place == "loss":
            step.loss = self.before(step.loss)
        elif place == "backward":  # the later layers have gradients already
            step.network.model[10].register_full_backward_hook(lambda *_: self.strike())
        else:
            step.take_step = self.before(step.take_step)

    def strike(self) -> None:
        self.num_calls += 1
        if self.num_calls in self.calls:
            self.num_raised += 1
            raise torch.OutOfMemoryError(CUDA_MESSAGE)

    def before(self, function: Callable) -> Callable:
        def wrapped(*args: object) -> object:
            self.strike()
            return function(*args)

        return wrapped


def train(step: TrainingStep, num_windows: int = 3) -> Tensor:
    for seed in range(num_windows):
        step.run(make_window(COUNTS, seed=seed))
    step.settle()
    return flat_weights(step.network)


@pytest.fixture(scope="module")
def undisturbed() -> Tensor:
    return train(make_step(make_lively_network(dtype=torch.float64), micro_batch_size=4), NUM_WINDOWS)


@pytest.mark.parametrize("calls", [{1}, {2, 3}, {3, 5}])
@pytest.mark.parametrize("place", PLACES)
def test_run__takes_the_same_steps_wherever_memory_runs_out(place: str, calls: set[int], undisturbed: Tensor) -> None:
    told: list[str] = []
    network = make_lively_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=4, hooks=RecoveryHooks(told.append))
    faults = Faults(step, place, calls)
    weights = train(step, NUM_WINDOWS)
    assert faults.num_raised == len(calls)
    assert relative_error(weights, undisturbed) <= 1e-12
    assert step.num_steps_taken == NUM_WINDOWS
    assert len(step.memory.history) == len(told) == len(calls)


def test_run__uses_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step(make_network(), micro_batch_size=4)
    Faults(step, "backward", {2})
    seen: list[int] = []
    accumulated = step._accumulate

    def record(window: Batch) -> object:
        result = accumulated(window)  # raises before anything is noted if the attempt fails
        seen.append(len(window))
        return result

    monkeypatch.setattr(step, "_accumulate", record)
    train(step, 2)
    assert seen == [len(COUNTS), len(COUNTS)]


def test_run__leaves_batch_norm_as_if_the_failed_attempt_had_never_been() -> None:
    networks = [make_network(frozen=False), make_network(frozen=False)]
    disturbed, plain = (make_step(network, micro_batch_size=8) for network in networks)
    disturbed.memory.recompute = "elementwise"  # the next lowering halves the micro-batch ...
    Faults(disturbed, "backward", {1})
    plain.memory.micro_batch_size = 4  # ... to this
    train(disturbed, 1)
    train(plain, 1)
    for norm, expected in zip(*map(batch_norms, networks), strict=True):
        assert torch.equal(norm.running_mean, expected.running_mean)
        assert torch.equal(norm.running_var, expected.running_var)
        assert norm.num_batches_tracked == expected.num_batches_tracked == 2


def test_run__with_an_fp16_scaler_scales_once() -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    steps = [make_step(make_network(), scaler=scaler) for scaler in scalers]
    Faults(steps[0], "backward", {1})
    assert relative_error(train(steps[0], 2), train(steps[1], 2)) <= 1e-6


def test_run__gives_up_at_a_single_image_and_says_what_would_fit() -> None:
    hooks = RecoveryHooks(what_fits=lambda: "use data.image_size 448")
    step = make_step(make_network(), micro_batch_size=16, hooks=hooks)
    faults = Faults(step, "forward", set(range(1, 100)))
    with pytest.raises(TrainingError, match=r"tried to allocate 2\.00 GiB\).*use data\.image_size 448"):
        train(step)
    assert faults.num_raised <= 4 + 2 + 1  # log2(16) + 2 lowerings, and the last failure
    assert (step.memory.micro_batch_size, step.memory.recompute) == (1, "block")


@settings(max_examples=40, deadline=None)
@given(micro_batch_size=st.integers(1, 300), start=st.sampled_from(["none", "elementwise", "block"]))
def test_lower__comes_to_an_end_in_few_steps(micro_batch_size: int, start: str) -> None:
    memory = MemorySettings(nn.Module(), 300, micro_batch_size, start)
    memory.network.model = nn.ModuleList()
    sizes = [micro_batch_size]
    with pytest.raises(TrainingError):
        while True:
            memory.lower("full", step=0)
            sizes.append(memory.micro_batch_size)
    assert sizes == sorted(sizes, reverse=True)
    assert (memory.micro_batch_size, memory.recompute) == (1, "block")
    assert len(memory.history) <= (micro_batch_size - 1).bit_length() + 2


def test_lower__recomputes_nothing_where_devices_normalise_together() -> None:
    memory = MemorySettings(nn.SyncBatchNorm.convert_sync_batchnorm(make_network()), 32, 8, "none")
    sizes = []
    with pytest.raises(TrainingError, match="a single image at recompute none"):
        while True:
            memory.lower("CUDA out of memory", step=7)
            sizes.append((memory.micro_batch_size, memory.recompute))
    assert sizes == [(4, "none"), (2, "none"), (1, "none")]


def test_lower__says_what_changes_and_what_stays(caplog: pytest.LogCaptureFixture) -> None:
    memory = MemorySettings(make_network(), 32, 16, "elementwise")
    with caplog.at_level(logging.WARNING):
        sentence = memory.lower("CUDA out of memory", step=7)
    assert sentence == (
        "CUDA out of memory: micro-batch 16 at recompute elementwise becomes micro-batch 8 at recompute elementwise; "
        "the effective batch stays 32"
    )
    assert caplog.messages == [sentence]
    assert memory.history[0].step == 7


def test_settings__stay_lowered_in_a_resumed_run_unless_the_user_has_changed_them() -> None:
    memory = MemorySettings(make_network(), 32, 16)
    memory.lower("full", step=3)
    memory.lower("full", step=5)
    same, changed = (MemorySettings(make_network(), 32, size) for size in (16, 12))
    for resumed in (same, changed):
        resumed.load_state_dict(memory.state_dict())
        assert resumed.history == memory.history
    assert (same.micro_batch_size, same.recompute) == (8, "elementwise")
    assert (changed.micro_batch_size, changed.recompute) == (12, "none")


def test_retry__has_freed_the_failed_attempt_before_it_lowers() -> None:
    alive: list[bool] = []
    held: list[weakref.ref] = []

    def attempt() -> str:
        if held:
            return "done"
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(CUDA_MESSAGE)

    gc.disable()  # reference counts alone must free the tensors
    try:
        assert retry(attempt, lambda cause: alive.append(held[0]() is not None)) == "done"
    finally:
        gc.enable()
    assert alive == [False]


def test_retry__lets_other_errors_through() -> None:
    def attempt() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        retry(attempt, lambda cause: None)


def test_retry__lowers_with_the_other_ranks_but_keeps_what_is_done() -> None:
    answers = iter([True, False])  # another rank fails once
    attempts, causes = [], []
    result = retry(lambda: attempts.append(1) or "done", causes.append, agree=lambda failed: next(answers))
    assert result == "done"
    assert len(attempts) == 1
    assert causes == ["another device ran out of memory"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA_MESSAGE), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_is_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@settings(max_examples=25, deadline=None)
@given(num_images=st.integers(1, 12), part_size=st.integers(1, 12), limit=st.integers(1, 12))
def test_in_parts__does_each_image_once_in_order(num_images: int, part_size: int, limit: int) -> None:
    window = make_window([1] * num_images, image_size=8)
    done: list[str] = []

    def work(part: Batch) -> None:
        if len(part) > limit:
            raise torch.OutOfMemoryError(CUDA_MESSAGE)
        done.extend(part.names)

    fitting = in_parts(window, part_size, work)
    assert done == window.names
    assert min(part_size, num_images) <= limit or fitting <= limit


def test_in_parts__gives_up_at_a_single_image() -> None:
    def work(part: Batch) -> None:
        raise torch.OutOfMemoryError(CUDA_MESSAGE)

    with pytest.raises(TrainingError, match=r"Lower data\.image_size"):
        in_parts(make_window([1, 1]), 2, work)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8, 9, 64])
def test_lower__recomputes_before_it_takes_fewer_images(micro_batch_size: int) -> None:
    """The size of a micro-batch changes the numbers of BatchNorm; recomputing does not."""
    memory = MemorySettings(make_network(), 64, micro_batch_size)
    memory.lower("CUDA out of memory", step=0)
    assert (memory.micro_batch_size, memory.recompute) == (micro_batch_size, "elementwise")


def test_lower__keeps_the_layers_that_the_user_does_not_repeat() -> None:
    network = make_network()
    memory = MemorySettings(network, 2, 2, "elementwise", {0: "none", 1: "block"})
    memory.lower("CUDA out of memory", step=0)
    assert (memory.recompute, memory.recompute_layers) == ("block", {0: "none"})
