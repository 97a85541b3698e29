"""Albumentations transforms of the user: boxes, seeds, limits; and no other transforms."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import albumentations as A
import numpy as np
import pytest

from data.augmentation.extra_transforms import ExtraTransforms
from data.augmentation.picture import LabelledImage
from data.errors import DataError


def make_image() -> LabelledImage:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 16, 32], [40.5, 10, 64, 20]], np.float32)
    return LabelledImage(image, boxes, np.array([2, 0], np.int32))


def test_extra_transforms__move_boxes_with_the_image() -> None:
    picture = make_image()
    flipped = ExtraTransforms([A.HorizontalFlip(p=1)])(picture, np.random.default_rng(0))
    assert np.array_equal(flipped.image, picture.image[:, ::-1])
    np.testing.assert_allclose(flipped.boxes_xyxy_px, [[48, 0, 64, 32], [0, 10, 23.5, 20]], atol=1e-4)
    assert flipped.classes.tolist() == [2, 0]
    assert flipped.boxes_xyxy_px.dtype == np.float32 and flipped.classes.dtype == np.int32


def test_extra_transforms__boxes_that_leave_are_dropped_with_their_classes() -> None:
    shift = A.Affine(translate_px={"x": -30, "y": 0}, p=1)
    moved = ExtraTransforms([shift])(make_image(), np.random.default_rng(0))
    np.testing.assert_allclose(moved.boxes_xyxy_px, [[10.5, 10, 34, 20]], atol=0.51)  # whole-pixel convention
    assert moved.classes.tolist() == [0]


def test_extra_transforms__image_without_objects() -> None:
    empty = make_image()._replace(boxes_xyxy_px=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int32))
    result = ExtraTransforms([A.HorizontalFlip(p=1)])(empty, np.random.default_rng(0))
    assert result.boxes_xyxy_px.shape == (0, 4) and result.classes.shape == (0,)


def test_extra_transforms__follow_from_the_generator_alone() -> None:
    transforms = [A.RandomBrightnessContrast(p=0.5), A.GaussNoise(p=0.5), A.Affine(rotate=(-20, 20), p=0.7)]
    first, second = ExtraTransforms(transforms), pickle.loads(pickle.dumps(ExtraTransforms(transforms)))
    pictures = [first(make_image(), np.random.default_rng(seed)) for seed in range(8)]
    for seed in reversed(range(8)):  # another order, another instance, other global state
        np.random.seed(seed)
        again = second(make_image(), np.random.default_rng(seed))
        for a, b in zip(pictures[seed], again, strict=True):
            assert np.array_equal(a, b)
    assert len({picture.image.tobytes() for picture in pictures}) > 4


@pytest.mark.parametrize("transform", [A.Resize(32, 32), A.Normalize(), A.ToGray(num_output_channels=1, p=1)])
def test_extra_transforms__rejects_what_changes_the_frame(transform: A.BasicTransform) -> None:
    with pytest.raises(DataError, match=r"data\.transforms: .*: the image was uint8 \(64, 64, 3\)\. Leave out"):
        ExtraTransforms([transform])(make_image(), np.random.default_rng(0))


def test_extra_transforms__one_that_fails_is_one_line() -> None:
    with pytest.raises(DataError, match=r"data\.transforms: \w+: .*: the transform failed\. Correct it") as caught:
        ExtraTransforms([A.RandomCrop(99, 99)])(make_image(), np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_package__keeps_albumentations_off_the_network_and_out_unless_asked() -> None:
    code = (
        "import os, sys, data.loading.loader, data.synthetic\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
        "assert 'albumentations' not in sys.modules and 'ultralytics' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
