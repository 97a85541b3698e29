"""Colour changes against Ultralytics, exactly."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from ultralytics.data.augment import RandomHSV

from data.color import shift_hsv


@pytest.mark.parity
@pytest.mark.parametrize("draws", [(0.0, 0.0, 0.0), (1, 1, 1), (-1, -1, -1), (0.3, -0.9, 0.5), (-0.7, 0.2, -1)])
@pytest.mark.parametrize("gains", [(0.015, 0.7, 0.4), (0.5, 0.9, 0.9)])
def test_shift_hsv__matches_reference(draws: tuple[float, float, float], gains: tuple[float, float, float]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image[:8] = image[:8, :, :1]  # some grey
    labels = {"img": np.ascontiguousarray(image[..., ::-1])}
    with mock.patch("numpy.random.uniform", return_value=np.array(draws, np.float64)):
        RandomHSV(*gains).apply_image(labels)
    assert np.array_equal(shift_hsv(image, np.array(draws) * gains), labels["img"][..., ::-1])


def test_shift_hsv__grey_keeps_its_hue_and_the_input_is_untouched() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    before = image.copy()
    shifted = shift_hsv(image, np.array([0.015, 0.7, -0.4]))
    assert np.array_equal(shifted[..., 0], shifted[..., 1]) and np.array_equal(shifted[..., 1], shifted[..., 2])
    assert shifted[0, 200, 0] == 120
    assert np.array_equal(image, before)
