"""Random warps: images, boxes and matrices against Ultralytics."""

from __future__ import annotations

import random
from unittest import mock

import numpy as np
import pytest
from scipy.stats import ks_2samp
from ultralytics.data.augment import RandomPerspective
from ultralytics.utils.instance import Instances

from data.augmentation.affine import draw_affine_matrix, is_candidate, transform_boxes, visible_window, warp
from data.augmentation.picture import LabelledImage

SIZE = 96
RANGES = {"degrees": 20.0, "translate": 0.2, "scale": 0.5, "shear": 8.0, "perspective": 0.001}


def make_image() -> LabelledImage:
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 120, (60, 2))
    corners = np.concatenate([low, np.minimum(low + rng.uniform(0.5, 60, (60, 2)), 128)], axis=1)
    image = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return LabelledImage(image, corners.astype(np.float32), np.arange(60, dtype=np.int32))


@pytest.mark.parity
@pytest.mark.parametrize("perspective", [0.0, 0.001])
def test_warp__matches_reference(perspective: float) -> None:
    picture = make_image()
    transform = RandomPerspective(**(RANGES | {"perspective": perspective}), size=(SIZE, SIZE))
    random.seed(3)
    kept = 0
    for _ in range(25):
        labels = {
            "img": picture.image.copy(),
            "cls": picture.classes[:, None],
            "instances": Instances(
                picture.boxes_xyxy_px.copy(), np.zeros((0, 1000, 2), np.float32), None, "xyxy", False
            ),
        }
        params = transform.get_params(labels)
        expected = transform.apply_instances(transform.apply_image(labels, params), params)
        warped = warp(picture, params["M"].astype(np.float64), params["scale"], SIZE)
        # the reference passes a float32 matrix to OpenCV: bilinear weights may round to the next of 32 steps
        assert (warped.image != expected["img"]).mean() < 1e-3
        assert warped.classes.tolist() == expected["cls"][:, 0].tolist()
        # float32 corners of some hundred pixels, divided by the perspective
        np.testing.assert_allclose(warped.boxes_xyxy_px, expected["instances"].bboxes, atol=2e-3)
        kept += len(warped.classes)
    assert 200 < kept < 1400  # the filter was exercised both ways


@pytest.mark.parity
@pytest.mark.parametrize("changes", [{}, {"degrees": 0.0, "shear": 0.0, "perspective": 0.0}])
def test_draw_affine_matrix__is_distributed_as_reference(changes: dict[str, float]) -> None:
    ranges = RANGES | changes
    transform = RandomPerspective(**ranges)
    random.seed(0)
    rng = np.random.default_rng(0)
    image = np.zeros((100, 128, 3), np.uint8)
    expected = [transform._compute_affine_matrix(image, (SIZE, SIZE)) for _ in range(3000)]
    drawn = [draw_affine_matrix(rng, (100, 128), SIZE, **ranges) for _ in range(3000)]
    assert drawn[0][0].dtype == np.float64 and drawn[0][0].shape == (3, 3)
    assert ks_2samp([scale for _, scale in drawn], [scale for _, scale in expected]).pvalue > 0.01
    for row in range(3):
        for column in range(3):
            ours = np.array([matrix[row, column] for matrix, _ in drawn])
            theirs = np.array([matrix[row, column] for matrix, _ in expected])
            if theirs.std() < 1e-6:
                np.testing.assert_allclose(ours, theirs[0], atol=1e-5)
            else:
                assert ks_2samp(ours, theirs).pvalue > 0.005, (row, column)


@pytest.mark.parity
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_draw_affine_matrix__matches_reference_term_by_term(share: float) -> None:
    """Both sides draw the same share of each range, so the matrices are equal only if the order of the factors is."""

    def draw(low: float, high: float, size: int | None = None) -> np.ndarray | float:
        value = low + share * (high - low)
        return value if size is None else np.full(size, value)

    ranges = RANGES | {"degrees": 50.0, "shear": 30.0}
    with mock.patch("random.uniform", draw):
        expected, scale = RandomPerspective(**ranges)._compute_affine_matrix(np.zeros((100, 128, 3)), (SIZE, SIZE))
    matrix, factor = draw_affine_matrix(mock.Mock(uniform=draw), (100, 128), SIZE, **ranges)
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-4)  # the reference computes in float32
    assert factor == pytest.approx(scale)


def test_draw_affine_matrix__without_ranges_centers_the_image() -> None:
    none = dict.fromkeys(RANGES, 0.0)
    matrix, scale = draw_affine_matrix(np.random.default_rng(0), (40, 64), 64, **none)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 12], [0, 0, 1]], atol=1e-12)
    assert scale == 1


def test_draw_affine_matrix__turns_about_the_middle() -> None:
    """A pure rotation: the middle stays, areas stay."""
    rng = np.random.default_rng(0)
    ranges = dict.fromkeys(RANGES, 0.0) | {"degrees": 90.0}
    for _ in range(20):
        matrix, _ = draw_affine_matrix(rng, (64, 64), 64, **ranges)
        np.testing.assert_allclose(matrix @ [32, 32, 1], [32, 32, 1], atol=1e-9)
        assert matrix[0, 1] == -matrix[1, 0] and np.isclose(np.linalg.det(matrix[:2, :2]), 1)


def test_transform_boxes__bounds_the_turned_corners() -> None:
    quarter = np.array([[0, 1, 0], [-1, 0, 10], [0, 0, 1]])
    assert transform_boxes(np.array([[1.0, 2.0, 4.0, 3.0]]), quarter).tolist() == [[2, 6, 3, 9]]
    assert transform_boxes(np.zeros((0, 4)), quarter).shape == (0, 4)


def test_visible_window__holds_every_source_pixel_that_is_seen() -> None:
    rng = np.random.default_rng(0)
    num_outside = 0
    for _ in range(30):
        ranges = RANGES | {"perspective": 0.0}
        matrix, _ = draw_affine_matrix(rng, (200, 200), SIZE, **ranges)
        x1, y1, x2, y2 = visible_window(matrix, SIZE)
        points = np.concatenate([rng.uniform(0, 200, (500, 2)), np.ones((500, 1))], axis=1)
        seen = ((points @ matrix.T)[:, :2] >= 0).all(axis=1) & ((points @ matrix.T)[:, :2] <= SIZE).all(axis=1)
        inside = (points[:, 0] > x1) & (points[:, 0] < x2) & (points[:, 1] > y1) & (points[:, 1] < y2)
        assert seen.any() and not (seen & ~inside).any()
        num_outside += (~inside).sum()
    assert num_outside > 3000  # of 15000: the window is no wider than it needs to be
    assert np.isinf(visible_window(np.array([[1, 0, 0], [0, 1, 0], [1e-3, 0, 1]]), SIZE)).all()


@pytest.mark.parity
def test_is_candidate__matches_reference_and_hand_made_cases() -> None:
    before = np.array([[0, 0, 10, 10]] * 6, np.float32)
    after = np.array(
        [[0, 0, 10, 10], [0, 0, 2, 10], [0, 0, 10, 2], [0, 0, 3, 3], [0, 0, 5, 2.2], [5, 5, 5, 5]], np.float32
    )
    assert is_candidate(before, after).tolist() == [True, False, False, False, True, False]
    slim = np.array([[0, 0, 400, 3.9], [0, 0, 400, 4.1]], np.float32)
    assert is_candidate(slim, slim).tolist() == [False, True]
    rng = np.random.default_rng(0)
    boxes = [np.sort(rng.uniform(0, 30, (500, 2, 2)), axis=1).reshape(500, 4) for _ in range(2)]
    expected = RandomPerspective.box_candidates(boxes[0].T, boxes[1].T)
    assert np.array_equal(is_candidate(*boxes), expected) and 50 < expected.sum() < 450
