"""Placing tiles directly: against warping a whole mosaic canvas, and boxes against pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.augmentation.affine import draw_affine_matrix, visible_window, warp
from data.augmentation.mosaic import build_mosaic, draw_mosaic_center
from data.augmentation.picture import LabelledImage
from data.augmentation.place import Tile, mosaic_tiles, only_scales_and_shifts, place_tiles

SIZE = 160
CANVAS = (2 * SIZE, 2 * SIZE)
RECIPE = {"degrees": 0.0, "translate": 0.1, "scale": 0.5, "shear": 0.0, "perspective": 0.0}


def smooth_image(seed: int) -> LabelledImage:
    """A picture without detail as fine as a pixel, with boxes."""
    rng = np.random.default_rng(seed)
    height, width = [(SIZE, SIZE), (SIZE, 100), (90, SIZE), (SIZE, 120)][seed % 4]
    image = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    corners = np.sort(rng.uniform(0, 1, (9, 2, 2)), axis=1).reshape(9, 4) * [width, height, width, height]
    return LabelledImage(image, corners.astype(np.float32), rng.integers(0, 5, 9).astype(np.int32))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


def test_only_scales_and_shifts__tells() -> None:
    assert only_scales_and_shifts(np.array([[0.5, 0, 3], [0, 0.5, -7.5], [0, 0, 1]]))
    for row, column in ((0, 1), (1, 0), (2, 0), (2, 1)):
        matrix = np.eye(3)
        matrix[row, column] = 1e-4
        assert not only_scales_and_shifts(matrix)
    assert not only_scales_and_shifts(np.diag([-1.0, 1, 1]))


@pytest.mark.parametrize("shift", [(0, 0), (-37, 12), (-160, -160), (50, 90)])
def test_place_tiles__equals_the_warped_canvas_where_nothing_is_rounded(shift: tuple[int, int]) -> None:
    matrix = np.array([[1.0, 0, shift[0]], [0, 1.0, shift[1]], [0, 0, 1]])
    for center_xy in ((160, 160), (90, 230), (100, 81)):
        canvas = build_mosaic(smooth_image, [0, 1, 2, 3], center_xy, SIZE, np.array([-np.inf, -np.inf, np.inf, np.inf]))
        expected = warp(canvas, matrix, 1.0, SIZE)
        placed = place_tiles(smooth_image, mosaic_tiles([0, 1, 2, 3], center_xy), CANVAS, matrix, 1.0, SIZE)
        assert np.array_equal(placed.image, expected.image)
        np.testing.assert_allclose(placed.boxes_xyxy_px, expected.boxes_xyxy_px, atol=1e-4)
        assert placed.classes.tolist() == expected.classes.tolist()


def test_place_tiles__is_the_warped_canvas_up_to_a_pixel() -> None:
    """Any draw of the recipe: boxes within a pixel or so, pixels alike."""
    rng = np.random.default_rng(0)
    ratios, num_boxes, num_expected = [], 0, 0
    for _ in range(150):
        center_xy = draw_mosaic_center(rng, SIZE)
        matrix, scale = draw_affine_matrix(rng, CANVAS, SIZE, **RECIPE)
        canvas = build_mosaic(smooth_image, [0, 1, 2, 3], center_xy, SIZE, visible_window(matrix, SIZE))
        expected = warp(canvas, matrix, scale, SIZE)
        placed = place_tiles(smooth_image, mosaic_tiles([0, 1, 2, 3], center_xy), CANVAS, matrix, scale, SIZE)
        ratios.append(psnr(placed.image, expected.image))
        num_boxes, num_expected = num_boxes + len(placed.classes), num_expected + len(expected.classes)
        if placed.classes.tolist() == expected.classes.tolist():
            # half a pixel of rounding at either end, up to 1.5 times as much when a source pixel is larger
            np.testing.assert_allclose(placed.boxes_xyxy_px, expected.boxes_xyxy_px, atol=1.6)
    assert np.median(ratios) > 27 and min(ratios) > 20  # seams lie up to one pixel apart
    assert abs(num_boxes - num_expected) < 0.01 * num_expected and num_expected > 1000


def test_place_tiles__boxes_lie_where_the_pixels_lie() -> None:
    """A white rectangle on black in each tile: its edges are found where its box says, to a fraction of a pixel."""

    def load(index: int) -> LabelledImage:
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[40:120, 30:110] = 255
        return LabelledImage(image, np.array([[30, 40, 110, 120]], np.float32), np.zeros(1, np.int32))

    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        matrix, scale = draw_affine_matrix(rng, CANVAS, SIZE, **RECIPE)
        tiles = mosaic_tiles([0, 1, 2, 3], draw_mosaic_center(rng, SIZE))
        placed = place_tiles(load, tiles, CANVAS, matrix, scale, SIZE)
        for x1, y1, x2, y2 in placed.boxes_xyxy_px.astype(float):
            if min(x2 - x1, y2 - y1) > 12:
                row = placed.image[round((y1 + y2) / 2), int(x1) + 3 : int(x2) - 3, 0]
                assert (row == 255).all()
                light = placed.image[round((y1 + y2) / 2), max(int(x1) - 5, 0) : int(x1) + 3, 0].astype(float) / 255
                errors.append(light.sum() - (int(x1) + 3 - x1))  # the bright width left of a point inside
    assert len(errors) > 150
    assert abs(np.median(errors)) < 0.02 and np.percentile(np.abs(errors), 90) < 0.3


def test_place_tiles__loads_only_what_is_seen() -> None:
    loaded = []

    def load(index: int) -> LabelledImage:
        loaded.append(index)
        return smooth_image(0)

    matrix = np.array([[1.5, 0, 0], [0, 1.5, 0], [0, 0, 1]])  # shows the canvas up to 107
    place_tiles(load, mosaic_tiles([0, 1, 2, 3], (120, 100)), CANVAS, matrix, 1.5, SIZE)
    assert loaded == [0, 2]


def test_place_tiles__single_image_is_the_letterbox() -> None:
    picture = smooth_image(1)
    height, width = picture.image.shape[:2]
    matrix = np.array([[1.0, 0, 30], [0, 1.0, 0], [0, 0, 1]])
    placed = place_tiles(lambda _: picture, [Tile(0, (0, 0), False, False)], (width, height), matrix, 1.0, SIZE)
    assert np.array_equal(placed.image[:, 30:130], picture.image)
    assert (placed.image[:, :30] == 114).all() and (placed.image[:, 130:] == 114).all()


def test_place_tiles__nothing_seen_is_gray() -> None:
    matrix = np.array([[1.0, 0, 1000], [0, 1.0, 0], [0, 0, 1]])
    placed = place_tiles(smooth_image, mosaic_tiles([0, 1, 2, 3], (160, 160)), CANVAS, matrix, 1.0, SIZE)
    assert (placed.image == 114).all() and placed.boxes_xyxy_px.shape == (0, 4) and placed.classes.shape == (0,)
