"""Color changes against exact arithmetic, and against Ultralytics within its own rounding."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from ultralytics.data.augment import RandomHSV

from data.augmentation import color
from data.augmentation.color import shift_hsv, shift_hsv_on_device, shift_hsv_to_planes

RECIPE = (0.015, 0.7, 0.4)
WIDE = (1.0, 0.9, 0.9)
DRAWS = [(0.0, 0.0, 0.0), (1, 1, 1), (-1, -1, -1), (0.3, -0.9, 0.5), (-0.7, 0.2, -1), (0.45, 1, -0.2), (0.1, 0.6, 0.9)]


def make_image() -> np.ndarray:
    """Noise; a gray, a dark and a bright band; pure colors; and a smooth part."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[:8] = image[:8, :, :1]
    image[8:12] //= 32
    image[12:16] = 255 - image[12:16] // 32
    image[16] = np.repeat([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255],
                           [255, 255, 255], [0, 0, 0]], 8, axis=0)  # fmt: skip
    image[32:] = np.linspace([200, 40, 90], [20, 180, 140], 64)
    return image


def exactly_shifted(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The definition in float64, not rounded."""
    hue, saturation, value = np.moveaxis(rgb_to_hsv(image / 255.0), -1, 0)
    changed = [(hue + gains[0]) % 1, (saturation * (1 + gains[1])).clip(0, 1), (value * (1 + gains[2])).clip(0, 1)]
    return hsv_to_rgb(np.stack(changed, axis=-1)) * 255


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize(("ranges", "tolerance"), [(RECIPE, 2.1), (WIDE, 4)])
def test_shift_hsv__is_exact_to_a_few_levels(
    draws: tuple[float, float, float], ranges: tuple[float, float, float], tolerance: float
) -> None:
    """Value, hue and the factor of the distances are each rounded once, then multiplied by up to 2.4 (wide: 3.6)."""
    gains, image = np.array(draws) * ranges, make_image()
    difference = shift_hsv(image, gains) - exactly_shifted(image, gains)
    assert np.abs(difference).max() < tolerance
    assert np.abs(difference).mean() < 0.5 and abs(difference.mean()) < 0.1  # no drift to dark or bright


def test_shift_hsv__without_gains_changes_nothing() -> None:
    assert np.array_equal(shift_hsv(make_image(), np.zeros(3)), make_image())


@pytest.mark.parity
@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("ranges", [RECIPE, WIDE])
def test_shift_hsv__matches_reference(draws: tuple[float, float, float], ranges: tuple[float, float, float]) -> None:
    """The tolerance is the error of the reference itself, which rounds hue to two degrees and truncates."""
    image = make_image()
    labels = {"img": np.ascontiguousarray(image[..., ::-1])}
    with mock.patch("numpy.random.uniform", return_value=np.array(draws, np.float64)):
        RandomHSV(*ranges).apply_image(labels)
    gains, theirs = np.array(draws) * ranges, labels["img"][..., ::-1].astype(float)
    exact = exactly_shifted(image, gains)
    assert np.abs(shift_hsv(image, gains) - theirs).mean() < np.abs(exact - theirs).mean() + 0.3
    assert np.abs(shift_hsv(image, gains) - theirs).max() < 20  # two degrees are 8 levels, cutting off 2 to 4 more


def test_shift_hsv__gray_keeps_its_hue_and_the_input_is_untouched() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    before = image.copy()
    shifted = shift_hsv(image, np.array([0.015, 0.7, -0.4]))
    assert np.array_equal(shifted[..., 0], shifted[..., 1]) and np.array_equal(shifted[..., 1], shifted[..., 2])
    assert shifted[0, 200, 0] == 120
    assert np.array_equal(image, before)


@pytest.mark.parametrize("strip_bytes", [1, 3 * 50 * 7, 2**20])
def test_shift_hsv__strips_make_no_difference(monkeypatch: pytest.MonkeyPatch, strip_bytes: int) -> None:
    """Strips of one row, of seven (the last is shorter) and of all rows; as an image and as planes."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    gains = np.array([0.01, -0.5, 0.3])
    expected = np.concatenate([shift_hsv(row[None], gains) for row in image])
    monkeypatch.setattr(color, "STRIP_BYTES", strip_bytes)
    found = np.empty((3, 40, 50), np.uint8)
    shift_hsv_to_planes(image, gains, found)
    assert np.array_equal(shift_hsv(image, gains), expected)
    assert np.array_equal(found.transpose(1, 2, 0), expected)


def planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def test_shift_hsv_on_device__without_gains_changes_nothing() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 40, 40), dtype=np.uint8))
    images[0, :, :3] = 0
    images[0, :, 3:6] = 255
    before = images.clone()
    assert torch.equal(shift_hsv_on_device(images, torch.zeros(5, 3)), before)


@pytest.mark.parametrize("seed", range(4))
def test_shift_hsv_on_device__is_the_host_up_to_two_levels(seed: int) -> None:
    """Two levels are too few to change what a network learns."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
    gains = rng.uniform(-1, 1, (9, 3)) * (0.015, 0.7, 0.4)
    expected = np.stack([shift_hsv(*pair).transpose(2, 0, 1) for pair in zip(pictures, gains, strict=True)])
    images = torch.stack([planes(picture) for picture in pictures])
    found = shift_hsv_on_device(images, torch.from_numpy(gains).float())
    assert torch.equal(images, torch.stack([planes(picture) for picture in pictures]))  # untouched
    difference = found.numpy().astype(float) - expected
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.5
    assert np.abs(difference.mean(axis=(0, 2, 3))).max() < 0.1  # nor is one darker


def test_shift_hsv_on_device__turns_pure_colors() -> None:
    """A third of the circle: red to green, green to blue, blue to red; saturation and value stop at their ends."""
    images = (torch.eye(3).view(3, 3, 1, 1) * 200).to(torch.uint8)
    turned = shift_hsv_on_device(images.clone(), torch.tensor([[1 / 3, 0, 0]] * 3))
    assert torch.equal(turned, images.roll(1, dims=1))
    pastel = torch.tensor([200, 150, 100], dtype=torch.uint8).view(1, 3, 1, 1)
    assert shift_hsv_on_device(pastel.clone(), torch.tensor([[0, 9.0, 0]])).flatten().tolist() == [200, 100, 0]
    assert shift_hsv_on_device(pastel.clone(), torch.tensor([[0, 0, 0.5]])).flatten().tolist() == [255, 191, 128]
    assert shift_hsv_on_device(pastel.clone(), torch.tensor([[0, -1.0, 0]])).flatten().tolist() == [200, 200, 200]
