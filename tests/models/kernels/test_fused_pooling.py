"""Max-pooling by Triton against PyTorch's: the same values bit for bit; on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules import SPPF

from models.kernels import fused_norm_act, fused_pooling
from models.kernels.fused_pooling import max_pool, max_pool_backward
from models.recompute import norm_act
from models.recompute.levels import apply_recompute
from models.recompute.pooling import is_fusible
from tests.helpers.storage import StorageMeter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make_map(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, num_levels: int) -> Tensor:
    """Random values of so many levels: of few, most windows have several largest ones."""
    values = torch.randint(num_levels, shape, generator=torch.Generator().manual_seed(sum(shape))) - num_levels // 2
    return values.to(DEVICE, dtype, memory_format=layout)


def reference(x: Tensor, grad: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """PyTorch's values, and its gradient in float64."""
    x = x.double().requires_grad_()
    out = F.max_pool2d(x, kernel_size, 1, kernel_size // 2)
    return out.detach(), torch.autograd.grad(out, x, grad.double())[0]


def assert_pools_as_pytorch(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, size: int) -> None:
    x, grad = make_map(shape, layout, dtype, num_levels=9), make_map(shape, layout, dtype, num_levels=7)
    out, expected = reference(x, grad, size)
    assert torch.equal(max_pool(x, size).double(), out)
    assert torch.equal(max_pool_backward(grad, x, size).double(), expected)  # sums of small whole numbers are exact


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (1, 130, 3, 1), (1, 1, 1, 1)], ids=str)
def test_max_pool__and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    assert_pools_as_pytorch(shape, layout, dtype, 5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_max_pool__several_images_and_tiles_of_them(layout: torch.memory_format) -> None:
    assert_pools_as_pytorch((2, 2, 33, 65), layout, torch.float32, 5)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_max_pool__sizes_of_windows(size: int) -> None:
    assert_pools_as_pytorch((1, 2, 12, 9), torch.contiguous_format, torch.float32, size)


def test_max_pool__not_finite_values() -> None:
    x = make_map((1, 4, 9, 9), torch.contiguous_format, torch.float32, 50)
    x[0, 0, 4, 4], x[0, 1, 2, 3], x[0, 2, 5, 5] = float("nan"), float("inf"), float("-inf")
    x[0, 0, 5, 5] = float("nan")
    x[0, 3] = float("-inf")
    grad = make_map((1, 4, 9, 9), torch.contiguous_format, torch.float32, 7)
    out, expected = reference(x, grad, 5)
    assert torch.equal(max_pool(x, 5).double().nan_to_num(7e9), out.nan_to_num(7e9))
    assert torch.equal(max_pool_backward(grad, x, 5).double(), expected)


def test_max_pool__slices_of_channels() -> None:
    """As a gradient comes out of a concatenation, and as a result goes into one."""
    wide = make_map((2, 12, 6, 5), torch.channels_last, torch.float32, 50)
    x, grad, place = wide.split(4, 1)
    out, expected = reference(x, grad, 5)
    assert torch.equal(max_pool_backward(grad, x, 5).double(), expected)
    assert max_pool(x, 5, place) is place
    assert torch.equal(wide[:, 8:].double(), out)


def test_sppf__trains_alike_and_pools_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Module()
    network.model = nn.Sequential(SPPF(8, 16)).to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 5, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    inputs, slopes = (x, *network.parameters()), torch.randn(2, 16, 6, 5, device=DEVICE)
    expected = torch.autograd.grad((network.model(x) * slopes).sum(), inputs)
    apply_recompute(network, "elementwise")
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    sizes = []

    def spy(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
        sizes.append(kernel_size)
        return max_pool_backward(grad, x, kernel_size)

    monkeypatch.setattr(fused_pooling, "max_pool_backward", spy)
    actual = torch.autograd.grad((network.model(x) * slopes).sum(), inputs)
    assert sizes == [5, 5, 5]
    for ours, theirs in zip(actual, expected, strict=True):
        assert float((ours - theirs).norm()) < 1e-4 * (1 + float(theirs.norm()))


def test_sppf__keeps_no_pooled_map(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Module()
    network.model = nn.Sequential(SPPF(8, 16)).to(DEVICE, memory_format=torch.channels_last)
    apply_recompute(network, "elementwise")
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    x = torch.randn(2, 8, 12, 10, device=DEVICE).to(memory_format=torch.channels_last)
    with StorageMeter(existing=[x, *network.parameters(), *network.buffers()]) as meter:
        out = network.model(x)
    raw_bytes = x[:, :4].nbytes + out.nbytes  # of both convolutions
    assert meter.live_bytes - out.nbytes - raw_bytes < x[:, :4].nbytes // 2  # statistics


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (nn.MaxPool2d(5, 1, 2), True),
        (nn.MaxPool2d(2, 2), False),
        (nn.MaxPool2d(5, 1, 0), False),
        (nn.MaxPool2d((5, 3), 1, (2, 1)), False),
        (nn.MaxPool2d(3, 1, 1, dilation=2), False),
        (nn.MaxPool2d(17, 1, 8), False),
    ],
    ids=str,
)
def test_is_fusible(pooling: nn.MaxPool2d, expected: bool) -> None:
    arguments = pooling.kernel_size, pooling.stride, pooling.padding, pooling.dilation, pooling.ceil_mode
    assert is_fusible(*arguments) is expected
