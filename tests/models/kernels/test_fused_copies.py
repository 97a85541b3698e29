"""Concatenation and upsampling by Triton: the same bits as PyTorch's; on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from models.kernels import fused_copies, fused_norm_act
from models.network import network_input
from models.recompute import copies, norm_act
from models.recompute.replacements import Replacements

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make_map(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype, memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 3, 5, 7), (3, 130, 3, 1), (1, 1, 1, 1), (2, 2, 33, 65)], ids=str)
class TestAgainstPyTorch:
    def test_concatenate(self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
        first, second = make_map(shape, layout, dtype), make_map(shape, layout, dtype).neg()
        wide = make_map((shape[0], shape[1] + 5, *shape[2:]), layout, dtype)
        parts = first, wide[:, 2:-2], second
        joined = fused_copies.concatenate(parts)
        assert torch.equal(joined, torch.cat(parts, 1))
        assert joined.is_contiguous(memory_format=layout) or shape[1] == 1

    @pytest.mark.parametrize("scale", [2, 3])
    def test_upsample(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, scale: int
    ) -> None:
        x = make_map(shape, layout, dtype)
        assert torch.equal(fused_copies.upsample(x, scale), interpolate(x, scale_factor=scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scale_bytes__every_byte_in_every_channel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(15).view(2, 3, 32, 20).flip(1).to(DEVICE)
    expected = network_input(images, dtype)
    monkeypatch.setattr("models.network.fused_kernels_work", lambda images: True)
    found = network_input(images, dtype, fused_kernels=True)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == dtype
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)


def test_concatenate__parts_of_different_layouts() -> None:
    parts = [make_map((2, 6, 5, 4), layout) for layout in (*LAYOUTS, *LAYOUTS[::-1])]
    assert torch.equal(fused_copies.concatenate(parts), torch.cat(parts, 1))


def test_concatenate__not_finite_values_are_copied() -> None:
    part = torch.tensor([float("nan"), float("inf"), -0.0, 1.0], device=DEVICE).view(1, 4, 1, 1)
    joined = fused_copies.concatenate([part, part])
    assert torch.equal(joined.view(torch.int32), torch.cat([part, part], 1).view(torch.int32))


def test_functions__have_pytorchs_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
    a, b = (make_map((2, channels, 4, 6), torch.channels_last).requires_grad_() for channels in (3, 5))
    weight = make_map((2, 8, 8, 12), torch.channels_last)
    theirs = interpolate(torch.cat([a, b], 1), scale_factor=2) * weight
    expected = torch.autograd.grad(theirs.sum(), (a, b))
    with Replacements(True):
        joined = torch.cat([a, b], 1)
    assert joined.grad_fn.name() == "ConcatenateBackward"
    ours = copies.Upsample.apply(joined, 2) * weight
    assert torch.equal(ours, theirs)
    for actual, wanted in zip(torch.autograd.grad(ours.sum(), (a, b)), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_replacements__leave_other_concatenations_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [make_map((1, 2, 3, 3), torch.contiguous_format).requires_grad_() for _ in range(2)]
    mixed = [maps[0], maps[1].half()]
    with Replacements(True):
        on_cpu = torch.cat(maps, 1)
        monkeypatch.setattr(norm_act, "kernels_for", lambda *_: fused_norm_act)
        others = (
            torch.cat(maps, 0),
            torch.cat(maps, dim=-1),
            torch.cat([x.flatten(1) for x in maps], 1),
            torch.cat(mixed, 1),
        )
    assert {x.grad_fn.name() for x in (on_cpu, *others)} == {"CatBackward0"}
