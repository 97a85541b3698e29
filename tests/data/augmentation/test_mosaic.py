"""The mosaic, pixel by pixel against Ultralytics; and that leaving out unseen quadrants changes nothing."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import ultralytics.data.augment as reference
from ultralytics.utils.instance import Instances

from data.augmentation.affine import draw_affine_matrix, visible_window, warp
from data.augmentation.mosaic import build_mosaic, draw_mosaic_center
from data.augmentation.picture import LabelledImage

SIZE = 64
EVERYTHING = np.array([-np.inf, -np.inf, np.inf, np.inf])


def make_image(seed: int) -> LabelledImage:
    rng = np.random.default_rng(seed)
    height, width = [(SIZE, SIZE), (SIZE, 40), (33, SIZE), (SIZE, 5)][seed % 4]
    corners = np.sort(rng.uniform(0, 1, (4, 2, 2)), axis=1).reshape(4, 4) * [width, height, width, height]
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LabelledImage(image, corners.astype(np.float32), rng.integers(0, 5, 4).astype(np.int32))


class ReferenceDataset:
    """Just enough of the Ultralytics dataset for its Mosaic."""

    cache = "ram"

    def __len__(self) -> int:
        return 4

    def get_image_and_label(self, index: int) -> dict:
        image, boxes, classes = make_image(index)
        return {
            "img": image.copy(),
            "cls": classes[:, None],
            "instances": Instances(boxes.copy(), np.zeros((0, 1000, 2), np.float32), None, "xyxy", False),
            "im_file": "",
            "ori_shape": image.shape[:2],
            "resized_shape": image.shape[:2],
        }


def reference_mosaic(tiles: list[int], center_xy: tuple[int, int]) -> dict:
    dataset = ReferenceDataset()
    mosaic = reference.Mosaic(dataset, imgsz=SIZE)
    mosaic.get_indexes = lambda: tiles[1:]
    labels = dataset.get_image_and_label(tiles[0])
    with mock.patch.object(reference.random, "uniform", side_effect=[0.0, center_xy[1], center_xy[0]]):
        return mosaic(labels)


@pytest.mark.parity
@pytest.mark.parametrize("center_xy", [(64, 64), (32, 95), (95, 33), (70, 40), (32, 32), (96, 96)])
@pytest.mark.parametrize("tiles", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 2]])
def test_build_mosaic__matches_reference(tiles: list[int], center_xy: tuple[int, int]) -> None:
    expected = reference_mosaic(tiles, center_xy)
    mosaic = build_mosaic(make_image, tiles, center_xy, SIZE, EVERYTHING)
    assert np.array_equal(mosaic.image, expected["img"])
    np.testing.assert_allclose(mosaic.boxes_xyxy_px, expected["instances"].bboxes, atol=1e-5)
    assert mosaic.classes.tolist() == expected["cls"][:, 0].tolist()


def test_build_mosaic__unseen_quadrants_are_not_loaded_and_change_nothing() -> None:
    rng = np.random.default_rng(0)
    loaded: list[int] = []

    def load(index: int) -> LabelledImage:
        loaded.append(index)
        return make_image(index)

    for _ in range(200):
        center_xy = draw_mosaic_center(rng, SIZE)
        matrix, scale = draw_affine_matrix(
            rng, (128, 128), SIZE, degrees=20, translate=0.2, scale=0.5, shear=5, perspective=0
        )
        window = visible_window(matrix, SIZE)
        lazy = warp(build_mosaic(load, [0, 1, 2, 3], center_xy, SIZE, window), matrix, scale, SIZE)
        whole = warp(build_mosaic(make_image, [0, 1, 2, 3], center_xy, SIZE, EVERYTHING), matrix, scale, SIZE)
        for a, b in zip(lazy, whole, strict=True):
            assert np.array_equal(a, b)
    assert 400 < len(loaded) < 780


def test_build_mosaic__nothing_seen_is_an_empty_canvas() -> None:
    mosaic = build_mosaic(make_image, [0, 1, 2, 3], (64, 64), SIZE, np.array([1e3, 1e3, -1e3, -1e3]))
    assert (mosaic.image == 114).all() and mosaic.boxes_xyxy_px.shape == (0, 4)


def test_draw_mosaic_center__is_uniform_in_the_middle_half() -> None:
    rng = np.random.default_rng(0)
    centers = np.array([draw_mosaic_center(rng, 640) for _ in range(4000)])
    assert centers.min() >= 320 and centers.max() < 960
    assert np.abs(centers.mean(axis=0) - 640).max() < 10  # one sigma of the mean is 2.9
    assert np.abs(centers.std(axis=0) - 640 / np.sqrt(12)).max() < 6
    assert abs(np.corrcoef(centers.T)[0, 1]) < 0.06
