"""Captured micro-steps: without a GPU, replaying a graph is replaced by running the micro-step on its buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.training import cuda_graphs
from engine.training.cuda_graphs import MIN_CAPACITY, CapturedGraph, CapturedMicroStep, can_capture, padded
from engine.training.out_of_memory import RecoveryHooks
from engine.training.step import TrainingStep
from tests.helpers.faults import OutOfMemoryAt
from tests.helpers.training import copy_of, flat_weights, make_network, make_step, make_window, relative_error

CAPTURE = cuda_graphs.capture


class FakeCapture:
    """Replaces `cuda_graphs.capture` and counts captures and replays."""

    def __init__(self) -> None:
        self.num_captures = self.num_replays = 0

    def __call__(self, micro_step: cuda_graphs.MicroStep, batch: Batch, scale: Tensor, pool: object) -> CapturedGraph:
        self.num_captures += 1
        totals = torch.zeros(4, dtype=torch.float64)

        def replay() -> None:
            self.num_replays += 1
            totals.copy_(micro_step(batch, scale))

        return CapturedGraph(replay, batch, scale, totals)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> FakeCapture:
    captures = FakeCapture()
    monkeypatch.setattr(cuda_graphs, "capture", captures)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return captures


def captured_step(
    network: nn.Module,
    micro_batch_size: int,
    hooks: RecoveryHooks = RecoveryHooks(),  # noqa: B008  frozen
) -> TrainingStep:
    step = make_step(network, micro_batch_size, hooks=hooks)
    step.micro_step = captured(step)
    return step


def captured(step: TrainingStep) -> CapturedMicroStep:
    """The micro-step of a step on a GPU."""
    parameters = list(step.network.parameters())
    return CapturedMicroStep(step._forward_backward, parameters, True, step._tensors_in_place)


@pytest.mark.parametrize("micro_batch_size", [4, 2, 3])
def test_run__trains_as_without_graphs(captures: FakeCapture, micro_batch_size: int) -> None:
    """The windows differ in boxes, the last one is smaller, and 3 + 1 images are two kinds of micro-step."""
    network = make_network(dtype=torch.float64)
    plain = copy_of(network)
    windows = [make_window(counts, seed) for seed, counts in enumerate([[2, 0, 5, 1], [0] * 4, [9, 9, 9, 9], [3, 1]])]
    captured, ordinary = captured_step(network, micro_batch_size), make_step(plain, micro_batch_size)
    for window in windows:
        captured.run(window)
        ordinary.run(window)
        outcomes = captured.settle(), ordinary.settle()
        assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-9)
    assert captures.num_replays >= 2
    assert relative_error(flat_weights(network), flat_weights(plain)) < 1e-12


def test_run__captures_at_the_second_time_and_again_when_the_boxes_outgrow_it(captures: FakeCapture) -> None:
    step = captured_step(make_network(), micro_batch_size=2)
    step.run(make_window([1, 1]))
    assert captures.num_captures == 0
    step.run(make_window([1, 1]))
    step.run(make_window([5, 5]))
    assert (captures.num_captures, captures.num_replays) == (1, 2)
    for _ in range(2):
        step.run(make_window([MIN_CAPACITY, 1]))
    assert (captures.num_captures, captures.num_replays) == (2, 3)


def test_run__captures_again_for_other_settings(captures: FakeCapture) -> None:
    step = captured_step(make_network(), micro_batch_size=2)
    for _ in range(2):
        step.run(make_window([1, 1]))
    step._lower("out of memory")  # from none to elementwise
    assert not step.micro_step._graphs
    for _ in range(2):
        step.run(make_window([1, 1]))
    assert (captures.num_captures, captures.num_replays) == (2, 2)


def test_run__keeps_gradients_at_their_place(captures: FakeCapture) -> None:
    network = make_network()
    step = captured_step(network, micro_batch_size=2)
    step.run(make_window([1, 1]))
    places = [p.grad.data_ptr() for p in network.parameters() if p.requires_grad]
    assert all(p.grad.count_nonzero() == 0 for p in network.parameters() if p.requires_grad)
    for _ in range(2):
        step.run(make_window([1, 1]))
    assert [p.grad.data_ptr() for p in network.parameters() if p.requires_grad] == places


def test_capture__adds_to_gradients_even_after_they_were_dropped(captures: FakeCapture) -> None:
    network = make_network(dtype=torch.float64)
    plain = copy_of(network)
    step, ordinary = captured_step(network, micro_batch_size=1), make_step(plain, micro_batch_size=2)
    step.run(make_window([1, 1]))
    step._undo()
    step.batch_statistics.save()
    step.micro_step.release()
    step.run(make_window([2, 3], seed=1))
    for window in (make_window([1, 1]), make_window([2, 3], seed=1)):
        ordinary.run(window)
    assert relative_error(flat_weights(network), flat_weights(plain)) < 1e-12


def test_release__releases_the_pool_and_captures_again(captures: FakeCapture) -> None:
    step = captured_step(make_network(), micro_batch_size=2)
    for _ in range(2):
        step.run(make_window([1, 1]))
    step.micro_step.release()
    assert step.micro_step._pool is None
    step.run(make_window([1, 1]))
    assert captures.num_captures == 2


def replace_parameter(step: TrainingStep) -> None:
    weight = step.network.model[0].conv.weight
    weight.data = weight.data.clone()


def replace_gradient(step: TrainingStep) -> None:
    weight = step.network.model[0].conv.weight
    weight.grad = weight.grad.clone()


def drop_gradients(step: TrainingStep) -> None:
    step.optimizer.zero_grad(set_to_none=True)


def replace_statistic(step: TrainingStep) -> None:
    norm = step.network.model[0].bn
    norm.running_var = norm.running_var.clone()


def replace_scale(step: TrainingStep) -> None:
    step.scaler._scale = step.scaler._scale.clone()


@pytest.mark.parametrize(
    "replace", [replace_parameter, replace_gradient, drop_gradients, replace_statistic, replace_scale]
)
def test_run__captures_again_when_a_tensor_is_not_where_it_was(
    replace: Callable[[TrainingStep], None], captures: FakeCapture, caplog: pytest.LogCaptureFixture
) -> None:
    """A captured graph has fixed addresses: with another tensor, it would read and write memory that may be free."""
    network = make_network(frozen=False)
    step = make_step(network, micro_batch_size=1, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    step.micro_step = captured(step)
    for _ in range(2):
        step.run(make_window([1, 1]))
    assert captures.num_captures == 1
    replace(step)
    for _ in range(2):
        step.run(make_window([1, 1]))
    assert captures.num_captures == 2
    assert caplog.text.count("capturing micro-steps again") == 1


def test_run__keeps_a_limited_number_of_graphs_and_one_buffer_for_images(captures: FakeCapture) -> None:
    """Training at 21 image sizes with a smaller last micro-batch has 42 kinds of micro-step."""
    sizes = [(count, 32 * side) for side in range(2, 8) for count in (2, 1)]
    step = make_step(make_network(), micro_batch_size=2)
    totals = torch.zeros(4)
    step.micro_step = CapturedMicroStep(lambda batch, scale: totals + batch.images.float().sum(), [], enabled=True)
    windows = [make_window([1] * count, image_size=size) for count, size in sizes]
    for _ in range(3):
        for window in windows:
            result = step.micro_step.run(window, torch.ones(()), None)
            assert float(result[0]) == float(window.images.float().sum())
    graphs = step.micro_step._graphs.values()
    assert len(graphs) == 8 < len(windows)
    assert len({graph.batch.images.untyped_storage().data_ptr() for graph in graphs}) == 1
    num_captures = captures.num_captures
    for window in windows[-8:]:
        step.micro_step.run(window, torch.ones(()), None)
    assert captures.num_captures == num_captures


def test_run__recovers_from_memory_that_runs_out_while_it_captures(
    captures: FakeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the capture then fails as well, and raises the error that is caught."""
    network = make_network(dtype=torch.float64)
    plain = copy_of(network)
    step, ordinary = captured_step(network, micro_batch_size=2), make_step(plain, micro_batch_size=2)
    begun: list[bool] = []

    @contextmanager
    def capture(graph: object, **how: object) -> Iterator[None]:
        begun.append(True)
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch.cuda, "graph", capture)

    def capture_once(*args: object) -> CapturedGraph:
        return captures(*args) if begun else CAPTURE(*args)

    monkeypatch.setattr(cuda_graphs, "capture", capture_once)
    step.run(make_window([1, 1]))
    with OutOfMemoryAt(0, lambda func: bool(begun) and func is torch.ops.aten.convolution_backward.default):
        step.run(make_window([2, 3], seed=1))
    for _ in range(2):
        step.run(make_window([1, 4], seed=2))
    assert begun == [True] and captures.num_captures == 1
    for seed, counts in enumerate([[1, 1], [2, 3], [1, 4], [1, 4]]):
        ordinary.run(make_window(counts, seed=min(seed, 2)))
    assert [lowering.recompute for lowering in step.memory.history] == ["elementwise"]
    assert step.memory.history[0].cause.startswith("CUDA out of memory")
    assert relative_error(flat_weights(network), flat_weights(plain)) < 1e-12


def test_adapt__releases_graphs_and_lowers_with_the_next_step(captures: FakeCapture) -> None:
    told: list[str] = []
    step = captured_step(make_network(), micro_batch_size=2, hooks=RecoveryHooks(told.append))
    for _ in range(2):
        step.run(make_window([1, 1]))
    step.ask_for_less("VRAM is spilling")
    step.run(make_window([1, 1]))
    assert not step.micro_step._graphs
    assert [(lowering.step, lowering.cause) for lowering in step.memory.history] == [(3, "VRAM is spilling")]
    assert step.memory.recompute == "elementwise"
    assert told == []  # memory has not run out
    step.run(make_window([1, 1]))
    assert len(step.memory.history) == 1


def test_padded__zeros_do_not_change_the_loss() -> None:
    window = make_window([3, 0, 4])
    step = make_step(make_network(dtype=torch.float64))
    sums, with_padding = step.loss_sums(window), step.loss_sums(padded(window, 16))
    for name in ("box", "cls", "dfl", "normaliser"):
        torch.testing.assert_close(getattr(with_padding, name), getattr(sums, name), rtol=1e-12, atol=0)


def test_can_capture__not_on_a_cpu_nor_with_synchronized_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    assert not can_capture(network)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert can_capture(network)
    assert not can_capture(nn.SyncBatchNorm.convert_sync_batchnorm(network))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recompute", ["none", "elementwise", "block"])
def test_run__trains_on_a_gpu_as_without_graphs(recompute: str) -> None:
    """Windows have two micro-batches, the last one smaller; the pool is released once in between."""
    networks = [make_network(frozen=False).cuda() for _ in range(2)]
    for network, graphs in zip(networks, (True, False), strict=True):
        step = make_step(network, micro_batch_size=4, precision="bf16", cuda_graphs=graphs)
        step.memory._set(4, recompute)
        for seed, counts in enumerate([[2, 0, 5, 1, 3, 3]] * 3 + [[1, 70, 70, 1, 1, 1]] * 3 + [[2, 1, 5, 1, 3, 3]] * 2):
            step.run(make_window(counts, seed).pin_memory())
            if seed == 4:
                step.micro_step.release()
        assert bool(step.micro_step._graphs) == graphs
        assert step.settle().finite
    assert relative_error(*[flat_weights(network) for network in networks]) < 1e-3  # bf16, atomic additions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_run__recovers_from_running_out_of_memory_while_it_captures() -> None:
    networks = [make_network(frozen=True).cuda() for _ in range(2)]
    for network, fails in zip(networks, (True, False), strict=True):
        step = make_step(network, micro_batch_size=4, cuda_graphs=True)
        work, failures = step._forward_backward, []

        def fail_once(batch: Batch, scale: Tensor, work=work, failures=failures, fails=fails) -> Tensor:
            totals = work(batch, scale)
            if fails and not failures and torch.cuda.is_current_stream_capturing():
                failures.append(True)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return totals

        step.micro_step._micro_step = fail_once
        for seed in range(6):
            step.run(make_window([2, 0, 5, 1], seed).pin_memory())
        assert bool(failures) == fails and step.memory.recompute == ("elementwise" if fails else "none")
        assert step.micro_step._graphs
    assert relative_error(*[flat_weights(network) for network in networks]) < 1e-4  # fp32 in another order
