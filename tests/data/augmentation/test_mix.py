"""MixUp and CutMix against Ultralytics, with the same draws."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from scipy.stats import ks_2samp
from ultralytics.data.augment import CutMix, MixUp
from ultralytics.utils.instance import Instances

from data.augmentation.mix import _draw_cut, cutmix, mixup
from data.augmentation.picture import LabelledImage

SIZE = 96


def make_picture(seed: int, num_boxes: int = 3, side: float = 14) -> LabelledImage:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, SIZE - side, (num_boxes, 2))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return LabelledImage(image, boxes, np.arange(num_boxes, dtype=np.int32) + 10 * seed)


def to_reference(picture: LabelledImage) -> dict:
    boxes = Instances(picture.boxes_xyxy_px.copy(), np.zeros((0, 1000, 2), np.float32), None, "xyxy", False)
    return {"img": picture.image.copy(), "cls": picture.classes[:, None], "instances": boxes}


def assert_equal(picture: LabelledImage, expected: dict) -> None:
    assert np.array_equal(picture.image, expected["img"])
    expected["instances"].convert_bbox("xyxy")
    np.testing.assert_allclose(picture.boxes_xyxy_px, expected["instances"].bboxes, atol=1e-4)
    assert picture.classes.tolist() == expected["cls"][:, 0].tolist()
    assert picture.boxes_xyxy_px.dtype == np.float32


@pytest.mark.parity
@pytest.mark.parametrize("share", [0.31, 0.5, 0.7])
def test_mixup__matches_reference(share: float) -> None:
    first, second = make_picture(1), make_picture(2)
    labels = to_reference(first) | {"mix_labels": [to_reference(second)]}
    transform = MixUp(None)
    expected = transform.apply_instances(transform.apply_image(labels, {"r": share}), {"r": share})
    assert_equal(mixup(first, second, mock.Mock(beta=lambda a, b: share)), expected)


@pytest.mark.parity
def test_cutmix__matches_reference() -> None:
    """With the same three rectangles, both sides choose the same free one and keep the same boxes."""
    changed = 0
    for seed in range(60):
        first, second = make_picture(seed + 1, num_boxes=2), make_picture(seed + 101, num_boxes=8)
        rng = np.random.default_rng(seed)
        cuts = [_draw_cut(rng, SIZE, SIZE) for _ in range(3)]
        labels = to_reference(first) | {"mix_labels": [to_reference(second)]}
        transform = CutMix(None)
        with (
            mock.patch("ultralytics.data.augment.BaseMixTransform.get_params", lambda *_: {}),
            mock.patch.object(transform, "_rand_bbox", mock.Mock(side_effect=[tuple(cut) for cut in cuts])),
            mock.patch("numpy.random.choice", lambda indices: indices[0]),
        ):
            params = transform.get_params(labels)
        expected = transform.apply_instances(transform.apply_image(labels, params), params)
        with mock.patch("data.augmentation.mix._draw_cut", mock.Mock(side_effect=cuts)):
            mixed = cutmix(first, second, mock.Mock(integers=lambda high: 0))
        assert_equal(mixed, expected)
        changed += mixed is not first
    assert 10 < changed < 58


@pytest.mark.parity
def test_draw_cut__is_distributed_as_reference() -> None:
    rng = np.random.default_rng(0)
    np.random.seed(0)
    ours = np.array([_draw_cut(rng, 300, 200) for _ in range(3000)])
    theirs = np.array([CutMix(None)._rand_bbox(200, 300) for _ in range(3000)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01


def test_cutmix__without_a_free_place_changes_nothing() -> None:
    full = make_picture(1, num_boxes=1, side=SIZE)
    assert cutmix(full, make_picture(2), np.random.default_rng(0)) is full
    empty = make_picture(3, num_boxes=0)
    assert cutmix(empty, empty, np.random.default_rng(0)) is empty
