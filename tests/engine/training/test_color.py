"""Colors changed by Triton equal those of PyTorch's operations, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.augmentation.color import shift_hsv_on_device
from data.loading.batch import Batch
from engine.training import color
from models.kernels import fused_color

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def noise(num_images: int, height: int, width: int) -> torch.Tensor:
    shape = num_images, 3, height, width
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    images[0, :, :3], images[0, :, 3:6] = 0, 255
    images[0, 1:, 6:9] = 17  # red, and two channels alike
    return images.to(DEVICE)


@pytest.mark.parametrize("size", [(40, 40), (13, 257), (1, 9)])
def test_shift_hsv__is_what_pytorch_computes(size: tuple[int, int]) -> None:
    images = noise(5, *size)
    gains = torch.tensor([[0, 0, 0], [0.015, 0.7, 0.4], [-0.5, -0.9, -0.4], [0.9, 2, -1], [0.33, -1, 3]], device=DEVICE)
    before = images.clone()
    shifted = fused_color.shift_hsv(images, gains)
    assert torch.equal(images, before)
    difference = (shifted.int() - shift_hsv_on_device(images, gains).int()).abs()
    assert int(difference.max()) <= 1  # a value in the middle of two levels
    assert float((difference > 0).float().mean()) < 0.001
    assert torch.equal(shifted[0], images[0])


def test_shift_hsv__takes_some_images_of_a_window() -> None:
    images, gains = noise(6, 8, 8), torch.rand(6, 3, device=DEVICE) - 0.5
    assert torch.equal(fused_color.shift_hsv(images[2:4], gains[2:4]), fused_color.shift_hsv(images, gains)[2:4])


def window(gains_B3: torch.Tensor | None) -> Batch:
    none = torch.zeros(0, dtype=torch.long, device=DEVICE)
    names = [f"{i}.jpg" for i in range(4)]
    return Batch(noise(4, 8, 8), torch.zeros(0, 4, device=DEVICE), none, none, names, hsv_gains_B3=gains_B3)


@pytest.mark.parametrize("works", [False, True])
def test_colored__takes_the_kernel_where_it_works(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "fused_kernels_work", lambda images: works)
    calls = []
    monkeypatch.setattr(fused_color, "shift_hsv", lambda *arguments: calls.append(arguments) or arguments[0] + 1)
    batch = window(torch.full((4, 3), 0.1, device=DEVICE))
    assert color.colored(batch, fused_kernels=False).hsv_gains_B3 is None and calls == []
    result = color.colored(batch, fused_kernels=True)
    assert len(calls) == works and result.hsv_gains_B3 is None
    assert torch.equal(result.images, batch.images + 1) == works
    unchanged = window(None)
    assert color.colored(unchanged, fused_kernels=True) is unchanged
