"""The fused kernels against float64 and against PyTorch's own: on a GPU, or in Triton's interpreter without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import C2PSA, SPPF, C3k2, Conv

from models.kernels import fused_norm_act, triton_support
from models.kernels.fused_norm_act import backward, normalise_activate, normalise_by_batch
from models.network import batch_norms, freeze_batch_norms
from models.recompute import norm_act
from models.recompute.levels import apply_recompute
from tests.helpers.training import copy_of, flat_gradient, flat_weights, make_network, make_step, make_window

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS, MOMENTUM = 1e-3, 0.03
LAYOUTS = [torch.contiguous_format, torch.channels_last]
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative, of one rounding
INTERPRETER_FACTOR = {torch.bfloat16: 2.0} if DEVICE == "cpu" else {}  # it cuts bf16 off instead of rounding it
SHAPES = [
    (2, 16, 8, 8),
    (1, 3, 5, 7),  # one image, ragged in every direction
    (3, 70, 3, 1),  # more channels than a tile
    (4, 5, 1, 1),  # maps of one place
    (1, 1, 1, 1),  # a single value
    (2, 2, 33, 65),  # several tiles an image, the last one ragged
]
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


def make_map(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.5
    return values.to(DEVICE, dtype).contiguous(memory_format=layout)


def make_affine(num_channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(2, num_channels, generator=generator).to(DEVICE)
    return weight, bias


def reference(
    x: Tensor, affine: tuple[Tensor, Tensor], grad: Tensor, silu: bool, running: tuple[Tensor, Tensor] | None = None
) -> list[Tensor]:
    """Output and the three gradients in float64; by ``running`` statistics, or by those of ``x``."""
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in (x, *affine))
    if running is None:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    else:
        mean, variance = (tensor.double() for tensor in running)
    z = (x - mean[:, None, None]) * (variance[:, None, None] + EPS).rsqrt()
    z = z * weight[:, None, None] + bias[:, None, None]
    out = F.silu(z) if silu else z
    return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), grad.double())]


def assert_close(actual: Tensor, expected: Tensor, relative: float, floor: float = 0.0) -> None:
    """Within ``relative`` of the expected value, or of a tenth of the largest one, or of ``floor``."""
    assert actual.shape == expected.shape
    scale = expected.abs() + (0.1 * expected.abs().max()).clamp(min=floor)
    error = (actual.double() - expected).abs() / (scale + 1e-9)
    assert float(error.max()) <= relative, f"{float(error.max()):.2e}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "no_act"])
class TestAgainstFloat64:
    def test_batch_statistics(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, silu: bool
    ) -> None:
        x, grad, affine = make_map(shape, dtype, layout), make_map(shape, dtype, layout, seed=2), make_affine(shape[1])
        running = *torch.full((2, shape[1]), 0.25, device=DEVICE).unbind(), torch.tensor(6, device=DEVICE)
        out, mean, variance = normalise_by_batch(x, *affine, running, MOMENTUM, EPS, silu)
        grads = backward(grad, x, *affine, mean, variance, silu, by_batch=True)

        assert out.dtype == x.dtype and out.stride() == x.stride() and grads[0].stride() == x.stride()
        true_variance, true_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        assert_close(mean, true_mean, 1e-6)
        assert_close(variance, true_variance + EPS, 1e-6)
        num_values = x.numel() // shape[1]
        unbiased = true_variance * num_values / max(num_values - 1, 1)
        assert_close(running[0], 0.25 + MOMENTUM * (true_mean - 0.25), 1e-6)
        assert_close(running[1], 0.25 + MOMENTUM * (unbiased - 0.25), 1e-6)
        assert int(running[2]) == 7
        expected = reference(x, affine, grad, silu)
        for actual, wanted, limit in zip(
            (out, *grads), expected, (ROUNDING[dtype], ROUNDING[dtype], 1e-5, 1e-5), strict=True
        ):
            # of few values, the terms of a gradient through the statistics cancel out
            assert_close(actual, wanted, 4 * limit, floor=1.0 if num_values <= 4 else 0.0)

    def test_running_statistics(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, silu: bool
    ) -> None:
        x, grad, affine = make_map(shape, dtype, layout), make_map(shape, dtype, layout, seed=2), make_affine(shape[1])
        mean = torch.linspace(-1, 1, shape[1], device=DEVICE)
        running = mean, mean.square() + 0.5
        variance = running[1] + EPS
        out = normalise_activate(x, *affine, mean, variance, silu)
        grads = backward(grad, x, *affine, mean, variance, silu, by_batch=False)
        limits = (ROUNDING[dtype], ROUNDING[dtype], 1e-5, 1e-5)
        for actual, wanted, limit in zip((out, *grads), reference(x, affine, grad, silu, running), limits, strict=True):
            assert_close(actual, wanted, 4 * limit)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_normalise_by_batch__many_splits(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm_act, "NUM_PROGRAMS", 7)
    monkeypatch.setattr(fused_norm_act, "TILE_ELEMENTS", 64)
    x = make_map((3, 4, 17, 13), torch.float32, layout)
    affine = make_affine(4)
    grad = make_map((3, 4, 17, 13), torch.float32, layout, seed=2)
    out, mean, variance = normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True)
    grads = backward(grad, x, *affine, mean, variance, True, by_batch=True)
    for actual, wanted in zip((out, *grads), reference(x, affine, grad, True), strict=True):
        assert_close(actual, wanted, 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_kernels__take_channels_of_a_larger_map(layout: torch.memory_format) -> None:
    wide = make_map((2, 12, 6, 5), torch.float32, layout)
    x, grad, affine = wide[:, 3:8], wide.flip(0)[:, 4:9], make_affine(5)
    out, mean, variance = normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True)
    grads = backward(grad, x, *affine, mean, variance, True, by_batch=True)
    for actual, wanted in zip((out, *grads), reference(x, affine, grad, True), strict=True):
        assert_close(actual, wanted, 1e-5)


@pytest.mark.parametrize("kind", ["transposed", "cropped", "expanded", "other layout"])
def test_backward__takes_gradients_of_any_strides(kind: str) -> None:
    x, affine = make_map((2, 3, 6, 6), torch.float32, torch.contiguous_format), make_affine(3)
    grad = {
        "transposed": x.flip(0).transpose(2, 3),
        "cropped": make_map((2, 3, 9, 9), torch.float32, torch.contiguous_format)[:, :, 1:7, 2:8],
        "expanded": torch.ones((), device=DEVICE).expand(2, 3, 6, 6),
        "other layout": x.flip(0).contiguous(memory_format=torch.channels_last),
    }[kind]
    _, mean, variance = normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True)
    actual = backward(grad, x, *affine, mean, variance, True, by_batch=True)
    for ours, wanted in zip(actual, reference(x, affine, grad, True)[1:], strict=True):
        assert_close(ours, wanted, 1e-4)


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0])
def test_normalise_by_batch__variance_survives_a_large_mean(offset: float) -> None:
    x = make_map((4, 3, 40, 40), torch.float32, torch.contiguous_format) * 0.01 + offset
    x[0, :, 0, 0] = 0.0  # nor may a stray first value spoil it
    x[0, :, 0, 0] += offset
    _, mean, variance = normalise_by_batch(x, *make_affine(3), None, MOMENTUM, 0.0, True)
    true_variance, true_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert_close(mean, true_mean, 1e-6)
    assert_close(variance, true_variance, 1e-4)  # E[x^2] - E[x]^2 in float32 would be wrong altogether


def test_normalise_by_batch__constant_channel_has_no_variance() -> None:
    x = torch.full((2, 3, 9, 9), 7.3, device=DEVICE)
    weight, bias = make_affine(3)
    out, mean, variance = normalise_by_batch(x, weight, bias, None, MOMENTUM, EPS, True)
    assert torch.allclose(mean, x[0, :, 0, 0], rtol=1e-6)
    assert torch.allclose(variance, torch.full_like(variance, EPS), rtol=1e-4)
    assert torch.allclose(out, F.silu(bias)[:, None, None].expand_as(out), atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_kernels__bad_values_stay_in_their_channel_and_are_not_hidden(bad: float, layout: torch.memory_format) -> None:
    x, affine = make_map((2, 4, 6, 7), torch.float32, layout), make_affine(4)
    grad = make_map((2, 4, 6, 7), torch.float32, layout, seed=2)
    x[1, 2, 3, 4] = bad
    out, mean, variance = normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True)
    grad_x, grad_weight, grad_bias = backward(grad, x, *affine, mean, variance, True, by_batch=True)
    good = torch.tensor([0, 1, 3])
    for tensor in (out.transpose(0, 1), grad_x.transpose(0, 1), grad_weight, grad_bias, variance):
        assert tensor[2].isnan().all()
        assert tensor[good].isfinite().all()
    frozen = normalise_activate(x, *affine, torch.zeros_like(mean), torch.ones_like(variance), True)
    wanted = F.silu(x * affine[0][:, None, None] + affine[1][:, None, None])
    assert torch.allclose(frozen, wanted, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("value", [-1e30, -200.0, -90.0, 90.0, 200.0, 1e30])
def test_kernels__silu_of_large_values_is_finite(value: float) -> None:
    x = torch.full((1, 1, 4, 4), value, device=DEVICE)
    zero, one = torch.zeros(1, device=DEVICE), torch.ones(1, device=DEVICE)
    assert torch.equal(normalise_activate(x, one, zero, zero, one, True), x.clamp(min=0))
    grads = backward(torch.ones_like(x), x, one, zero, zero, one, True, by_batch=False)
    assert torch.equal(grads[0], (x > 0).float())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("by_batch", [True, False])
def test_kernels__no_further_from_the_truth_than_pytorch(dtype: torch.dtype, by_batch: bool) -> None:
    x = make_map((4, 6, 20, 20), dtype, torch.contiguous_format)
    grad, affine = make_map((4, 6, 20, 20), dtype, torch.contiguous_format, seed=2), make_affine(6)
    errors = []
    truth = reference(x, affine, grad, True, None if by_batch else (torch.zeros(6), torch.ones(6)))
    for kernels in (fused_norm_act, norm_act):
        statistics = torch.zeros(6, device=DEVICE), torch.ones(6, device=DEVICE) + EPS
        if by_batch:
            out, *statistics = kernels.normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True)
        else:
            out = kernels.normalise_activate(x, *affine, *statistics, True)
        results = (out, *kernels.backward(grad, x, *affine, *statistics, True, by_batch))
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(results, truth, strict=True)])
    limit = 1.1 * INTERPRETER_FACTOR.get(dtype, 1.0)
    assert all(ours <= limit * theirs + 1e-7 for ours, theirs in zip(*errors, strict=True)), errors


def test_kernels__same_bits_every_time() -> None:
    x, affine = make_map((2, 8, 33, 31), torch.float32, torch.contiguous_format), make_affine(8)
    first, second = (normalise_by_batch(x, *affine, None, MOMENTUM, EPS, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    again = normalise_activate(x, *affine, *first[1:], True)
    assert torch.equal(again, first[0])


class Stack(nn.Module):
    """A few layers of YOLO11, cut and joined as there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(Conv(3, 8, 3, 2), C3k2(8, 12, 1), SPPF(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize("level", ["elementwise", "block"])
@pytest.mark.parametrize("frozen", [False, True])
def test_recompute__trains_alike_with_fused_kernels(level: str, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Stack().to(DEVICE)
    if frozen:
        freeze_batch_norms(batch_norms(plain))
    lean = copy_of(plain)
    apply_recompute(lean, level)
    images = make_map((2, 3, 24, 16), torch.float32, torch.contiguous_format)

    def loss_and_gradient(network: nn.Module) -> tuple[Tensor, Tensor]:
        loss = network(images).square().mean()
        loss.backward()
        return loss.detach(), flat_gradient(network)

    expected, expected_gradient = loss_and_gradient(plain)
    calls = []
    monkeypatch.setattr(norm_act, "kernels_for", lambda x, _: calls.append(x) or fused_norm_act)
    loss, gradient = loss_and_gradient(lean)
    num_units = len(list(batch_norms(plain)))
    assert len(calls) >= num_units * (2 if level == "block" else 1) > 6
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-5
    for ours, theirs in zip(batch_norms(lean), batch_norms(plain), strict=True):
        assert torch.allclose(ours.running_mean, theirs.running_mean, atol=1e-6)
        assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-5)
        assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked)


@pytest.mark.parametrize("kernels", [norm_act, fused_norm_act], ids=["pytorch", "fused"])
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_act__in_two_parts(kernels: object, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: kernels)
    norms = [nn.BatchNorm2d(6).to(DEVICE).train(not frozen) for _ in range(2)]
    x = make_map((3, 6, 5, 4), torch.float32, torch.channels_last).requires_grad_()
    grads = []
    for norm, num_parts in zip(norms, (1, 2), strict=True):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 6))
        out = norm_act.BatchNormAct.apply(x, norm.weight, norm.bias, norm, True, num_parts)
        halves = out.chunk(2, 1) if num_parts == 1 else out
        assert [half.is_contiguous(memory_format=torch.channels_last) for half in halves] == [num_parts == 2] * 2
        loss = (halves[0] * 3 + halves[1].square()).sum()
        grads.append([*halves, *torch.autograd.grad(loss, (x, norm.weight, norm.bias))])
    for whole, parted in zip(*grads, strict=True):
        assert torch.allclose(parted, whole, rtol=1e-5, atol=1e-5)
    for name, buffer in norms[0].named_buffers():
        assert torch.allclose(norms[1].get_buffer(name), buffer, rtol=1e-6), name
    assert int(norms[1].num_batches_tracked) == (0 if frozen else 1)


@pytest.mark.parametrize("kernels", [norm_act, fused_norm_act], ids=["pytorch", "fused"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batch_norm_act__with_a_residual(
    kernels: object, frozen: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: kernels)
    norms = [nn.BatchNorm2d(6).to(DEVICE).train(not frozen) for _ in range(2)]
    x = make_map((3, 6, 5, 4), dtype, torch.channels_last).requires_grad_()
    residual = make_map((3, 9, 5, 4), dtype, torch.channels_last)[:, 1:7].requires_grad_()
    results = []
    for norm, is_fused in zip(norms, (False, True), strict=True):
        arguments = x, norm.weight, norm.bias, norm, True, 1
        apply = norm_act.BatchNormAct.apply
        out = apply(*arguments, residual) if is_fused else residual + apply(*arguments)
        if is_fused:
            assert torch.equal(norm_act.BatchNormAct.output(out.grad_fn, 0, residual), out)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, norm.weight, norm.bias, residual))])
    for plain, fused in zip(*results, strict=True):
        assert torch.allclose(fused, plain, rtol=1e-5, atol=1e-5)
    assert int(norms[1].num_batches_tracked) == (0 if frozen else 1)


def test_recompute__convolutions_get_maps_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    network = Stack().to(DEVICE, memory_format=torch.channels_last)
    apply_recompute(network, "elementwise")
    are_dense: list[bool] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs: are_dense.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    network(make_map((2, 3, 24, 16), torch.float32, torch.channels_last)).sum().backward()
    assert all(are_dense) and len(are_dense) == len(list(batch_norms(network)))


def test_recompute__attention_and_larger_maps_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Stack` lacks of YOLO11: residuals within a C3k, upsampling, a halved unit before attention."""
    torch.manual_seed(0)
    plain = nn.Module()
    plain.model = nn.Sequential(C3k2(3, 12, 1, True), nn.Upsample(None, 2, "nearest"), Conv(12, 128), C2PSA(128, 128))
    plain = plain.to(DEVICE, memory_format=torch.channels_last)
    lean = copy_of(plain)
    apply_recompute(lean, "elementwise")
    images = make_map((2, 3, 6, 4), torch.float32, torch.channels_last)
    gradients = []
    for network in (plain, lean):
        network.model(images).square().mean().backward()
        gradients.append(flat_gradient(network))
        monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-4


def test_recompute__parts_are_made_at_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    network = Stack().to(DEVICE, memory_format=torch.channels_last)
    apply_recompute(network, "elementwise")
    loss = network(make_map((2, 3, 24, 16), torch.float32, torch.channels_last)).sum()
    places: list[Tensor] = []

    def spy(*arguments: Any) -> Tensor:
        places.extend(arguments[7:])
        return normalise_activate(*arguments)

    monkeypatch.setattr(fused_norm_act, "normalise_activate", spy)
    loss.backward()
    assert sum(place is not None for place in places) == 2  # a half that nothing else reads, and the last of all
    assert all(not place.is_contiguous(memory_format=torch.channels_last) for place in places if place is not None)


def test_kernels_for__cpu_and_float64_take_pytorchs_kernels() -> None:
    assert norm_act.kernels_for(torch.zeros(1), True) is norm_act
    assert torch.float64 not in fused_norm_act.DTYPES


class OnCuda:
    """As much of a tensor on a GPU as is looked at."""

    is_cuda, dtype, device = True, torch.float16, DEVICE


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Whether Triton works is looked at anew."""
    triton_support._work_on.cache_clear()
    yield
    triton_support._work_on.cache_clear()


def test_kernels_for__are_fused_only_on_demand(forgotten: None) -> None:
    assert norm_act.kernels_for(OnCuda(), True) is fused_norm_act
    assert norm_act.kernels_for(OnCuda(), False) is norm_act


def test_kernels_for__are_pytorchs_without_triton(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert norm_act.kernels_for(OnCuda(), True) is norm_act


def test_kernels_for__are_pytorchs_where_triton_cannot_compile(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused_norm_act, "normalise_activate", fail)
    assert norm_act.kernels_for(OnCuda(), True) is norm_act
    assert "Failed to find C compiler" in caplog.text


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_step__trains_on_a_gpu_with_fused_kernels(precision: str) -> None:
    network = make_network(frozen=False).cuda()
    apply_recompute(network, "elementwise", fused_kernels=True)
    before = flat_weights(network)
    step = make_step(network, 2, precision=precision, scaler=torch.amp.GradScaler("cuda", enabled=precision == "fp16"))
    for seed in range(3):
        step.run(make_window([2, 0, 5, 1], seed=seed))
    assert step.settle().finite
    assert not torch.equal(flat_weights(network), before)
