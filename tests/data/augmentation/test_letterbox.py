"""Resizing and padding against Ultralytics; and the map back to the original image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.augment import LetterBox

from data.augmentation.letterbox import pad_centered, resize_long_side
from data.loading.batch import letterbox_geometry, to_original_px


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size_hw", "expected_hw"),
    [
        ((64, 64), (64, 64)),
        ((100, 50), (64, 32)),
        ((10, 30), (22, 64)),
        ((33, 64), (33, 64)),
        ((2000, 2), (64, 1)),
    ],
)
def test_resize_long_side__up_and_down_rounding_up(size_hw: tuple[int, int], expected_hw: tuple[int, int]) -> None:
    assert resize_long_side(noise(*size_hw), 64).shape[:2] == expected_hw


def test_resize_long_side__leaves_the_right_size_alone() -> None:
    image = noise(40, 64)
    assert resize_long_side(image, 64) is image


@pytest.mark.parity
@pytest.mark.parametrize("size_hw", [(64, 64), (64, 41), (40, 64), (64, 1), (37, 64)])
def test_pad_centered__matches_reference(size_hw: tuple[int, int]) -> None:
    image = noise(*size_hw)
    square, (left, top) = pad_centered(image, (64, 64))
    assert np.array_equal(square, LetterBox((64, 64), auto=False, scaleup=False)(image=image))
    assert np.array_equal(square[top : top + size_hw[0], left : left + size_hw[1]], image)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 320, 640]))
def test_to_original_px__undoes_the_letterbox(height: int, width: int, image_size: int) -> None:
    gain = image_size / max(height, width)
    resized = [min(int(np.ceil(side * gain)), image_size) for side in (height, width)]
    pad = ((image_size - resized[1]) // 2, (image_size - resized[0]) // 2)
    geometry = letterbox_geometry((height, width), (resized[0], resized[1]), pad)
    fractions = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.4]])
    size = torch.tensor([width, height, width, height])
    letterboxed = fractions * torch.tensor([resized[1], resized[0]] * 2) + torch.tensor(pad * 2)
    # pixel coordinates in FP32 are exact to about 1e-4 of a pixel, times the gain back
    torch.testing.assert_close(to_original_px(letterboxed, geometry), fractions * size, atol=2e-3 / gain, rtol=1e-5)


def test_to_original_px__clips_to_the_picture() -> None:
    geometry = letterbox_geometry((100, 200), (32, 64), (0, 16))
    boxes = torch.tensor([[-5.0, 10.0, 70.0, 60.0], [0.0, 16.0, 32.0, 32.0]])
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [0.0, 0.0, 100.0, 50.0]])
    assert torch.equal(to_original_px(boxes, geometry), expected)


def test_to_original_px__a_row_for_each_box() -> None:
    rows = [letterbox_geometry((100, 200), (32, 64), (0, 16)), letterbox_geometry((64, 64), (64, 64), (0, 0))]
    both = rows[0]
    both = type(both)(*(torch.cat(pair) for pair in zip(*(vars(row).values() for row in rows), strict=True)))
    boxes = torch.tensor([[0.0, 16.0, 32.0, 32.0]]).repeat(3, 1)
    mapped = to_original_px(boxes, both[torch.tensor([0, 1, 1])])
    assert mapped.tolist() == [[0, 0, 100, 50], [0, 16, 32, 32], [0, 16, 32, 32]]
    assert torch.equal(to_original_px(boxes[:1], both[1]), boxes[:1])
    assert to_original_px(torch.zeros(0, 4), both[0]).shape == (0, 4)
