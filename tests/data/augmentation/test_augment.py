"""The training augmentation as a whole: order, determinism, distributions, configuration."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp
from ultralytics.data.augment import RandomFlip
from ultralytics.utils.instance import Instances

import data.augmentation.augment
from data.augmentation.augment import AugmentConfig, augment, flip
from data.augmentation.letterbox import pad_centered
from data.augmentation.picture import LabelledImage
from data.augmentation.place import Tile
from data.errors import DataError
from data.indexing.index import ImageIndex
from data.loading.sampler import SampleKey, sample_generator
from data.loading.source import ImageSource

STILL = AugmentConfig(mosaic=0, translate=0, scale=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0)


def make_image() -> LabelledImage:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    boxes = np.array([[1, 2, 11, 8], [30, 20, 40, 30]], np.float32)
    return LabelledImage(image, boxes, np.array([3, 4], np.int32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 1.0}, r"data\.augment\.scale: 1\.0: out of range\. Give a number from 0 to 0\.95"),
        ({"mosaic": -0.1}, r"data\.augment\.mosaic: -0\.1: out of range\. Give a number from 0 to 1"),
        ({"fliplr": 2}, r"data\.augment\.fliplr: 2: "),
        ({"hsv_h": float("nan")}, r"data\.augment\.hsv_h: nan: "),
        ({"perspective": 0.1}, r"data\.augment\.perspective: 0\.1: out of range\. Give a number from 0 to 0\.001"),
        ({"close_mosaic": -1}, r"data\.augment\.close_mosaic: -1: negative\. Give 0 or more epochs"),
    ],
)
def test_augment_config__rejects(changes: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentConfig(**changes)


def test_augment_config__defaults_are_the_recipe() -> None:
    expected = {"mosaic": 1, "close_mosaic": 10, "degrees": 0, "translate": 0.1, "scale": 0.5, "shear": 0}
    expected |= {
        "perspective": 0,
        "mixup": 0,
        "cutmix": 0,
        "hsv_h": 0.015,
        "hsv_s": 0.7,
        "hsv_v": 0.4,
        "flipud": 0,
        "fliplr": 0.5,
    }
    assert vars(AugmentConfig()) == expected


@pytest.mark.parametrize(
    ("close_mosaic", "max_epochs", "expected"),
    [(2, 5, [1, 1, 1, 0, 0]), (0, 3, [1, 1, 1]), (10, 3, [0, 0, 0]), (3, 3, [0, 0, 0])],
)
def test_in_epoch__mixing_ends_before_the_run(close_mosaic: int, max_epochs: int, expected: list[int]) -> None:
    config = AugmentConfig(mixup=1, cutmix=1, close_mosaic=close_mosaic)
    epochs = [config.in_epoch(epoch, max_epochs) for epoch in range(max_epochs)]
    for name in ("mosaic", "mixup", "cutmix"):
        assert [getattr(epoch, name) for epoch in epochs] == expected
    assert {epoch.scale for epoch in epochs} == {0.5}


@pytest.mark.parity
@pytest.mark.parametrize(("axis", "direction"), [(0, "vertical"), (1, "horizontal")])
def test_flip__matches_reference(axis: int, direction: str) -> None:
    picture, untouched = make_image(), make_image().image
    instances = Instances(picture.boxes_xyxy_px.copy(), np.zeros((0, 1000, 2), np.float32), None, "xyxy", False)
    labels = {"img": picture.image.copy(), "instances": instances, "cls": picture.classes[:, None]}
    expected = RandomFlip(p=1.0, direction=direction)(labels)
    expected["instances"].convert_bbox("xyxy")
    flipped = flip(picture, axis)
    assert np.array_equal(flipped.image, expected["img"])
    np.testing.assert_allclose(flipped.boxes_xyxy_px, expected["instances"].bboxes, atol=1e-5)
    back = flip(flipped, axis)
    assert np.array_equal(back.image, untouched)
    assert np.array_equal(back.boxes_xyxy_px, picture.boxes_xyxy_px)


def test_augment__without_any_range_only_letterboxes(index: ImageIndex) -> None:
    source = ImageSource(index, 64)
    picture, original = augment(source, 1, np.random.default_rng(0), STILL), source.load(1)
    assert picture.image.shape == (64, 64, 3) and original.image.shape == (48, 64, 3)
    assert np.array_equal(picture.image[8:56], original.image)
    assert (picture.image[:8] == 114).all() and (picture.image[56:] == 114).all()
    np.testing.assert_allclose(picture.boxes_xyxy_px, original.boxes_xyxy_px + np.array([0, 8, 0, 8]), atol=1e-4)


def test_augment__is_as_if_the_picture_were_letterboxed_first(index: ImageIndex) -> None:
    """Ultralytics pads a single picture to a square before it warps it; the border of the warp is the same gray."""
    source = ImageSource(index, 64)
    original = source.load(1)
    square, (left, top) = pad_centered(original.image, (64, 64))
    moved = original._replace(image=square, boxes_xyxy_px=original.boxes_xyxy_px + np.float32([left, top] * 2))
    config = AugmentConfig(mosaic=0, degrees=20, shear=3, hsv_h=0, hsv_s=0, hsv_v=0)
    with mock.patch.object(source, "load", return_value=moved):
        letterboxed = [augment(source, 1, np.random.default_rng(seed), config) for seed in range(20)]
    for seed, expected in enumerate(letterboxed):
        picture = augment(source, 1, np.random.default_rng(seed), config)
        changed = (picture.image != expected.image).any(axis=-1)
        assert changed.mean() < 0.01, "but for positions that OpenCV rounds to another thirty-second of a pixel"
        assert np.array_equal(picture.classes, expected.classes)
        np.testing.assert_allclose(picture.boxes_xyxy_px, expected.boxes_xyxy_px, atol=1e-4)


def test_augment__is_a_function_of_the_generator(index: ImageIndex) -> None:
    def sample(seed: int, epoch: int, image: int) -> LabelledImage:
        rng = sample_generator(seed, SampleKey(epoch, image))
        return augment(ImageSource(index, 64), image, rng, AugmentConfig())

    base = sample(1, 2, 3)
    for a, b in zip(base, sample(1, 2, 3), strict=True):
        assert np.array_equal(a, b)
    for other in (sample(2, 2, 3), sample(1, 3, 3), sample(1, 2, 4), sample(2, 1, 3)):
        assert not np.array_equal(base.image, other.image)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
def test_augment__boxes_lie_inside_the_picture(index: ImageIndex, degrees: float) -> None:
    config = AugmentConfig(mosaic=0.7, mixup=0.2, cutmix=0.3, degrees=degrees, shear=degrees / 5, flipud=0.5)
    num_boxes = 0
    for key in range(60):
        rng = sample_generator(0, SampleKey(0, key))
        picture = augment(ImageSource(index, 64), key % 7, rng, config)
        boxes = picture.boxes_xyxy_px
        assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8
        assert boxes.dtype == np.float32 and len(boxes) == len(picture.classes)
        assert ((boxes >= 0) & (boxes <= 64)).all() and (boxes[:, 2:] - boxes[:, :2] > 0.2).all()  # cutmix cuts
        num_boxes += len(boxes)
    assert num_boxes > 60


@pytest.mark.parametrize("changes", [{}, {"shear": 5.0}, {"degrees": 180.0}, {"perspective": 0.001}])
def test_augment__boxes_follow_the_pixels(changes: dict[str, float]) -> None:
    """A white rectangle on black stays where its box says, through every geometric change."""
    rng = np.random.default_rng(0)
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:40, 8:32] = 255
    source = mock.Mock(image_size=64)
    source.load.return_value = LabelledImage(image, np.array([[8, 16, 32, 40]], np.float32), np.zeros(1, np.int32))
    source.__len__ = lambda self: 5
    for mosaic in (0.0, 1.0) * 30:
        config = AugmentConfig(mosaic=mosaic, hsv_h=0, hsv_s=0, hsv_v=0, flipud=0.5, **changes)
        picture = augment(source, 0, rng, config)
        white = np.zeros((64, 64), bool)
        for x1, y1, x2, y2 in picture.boxes_xyxy_px:
            rows, columns = slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2)))
            assert picture.image[rows, columns].max() > 200
            white[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = True
        outside = (picture.image[..., 0] > 128) & ~white
        assert outside.sum() <= 64 * 4  # only slivers of boxes that the candidate rule dropped


def test_augment__mosaic_partners_are_uniform_over_the_pool(index: ImageIndex) -> None:
    source, partners, pool = ImageSource(index, 64), Counter(), np.array([6, 2, 5, 0])

    def record(images: list[int], center_xy: tuple[int, int]) -> list[Tile]:
        assert images[0] == 5
        partners.update(images[1:])
        return []

    with mock.patch.object(data.augmentation.augment, "mosaic_tiles", record):
        for epoch in range(700):
            augment(source, 5, sample_generator(0, SampleKey(epoch, 5)), AugmentConfig(), pool)
    assert sorted(partners) == [0, 2, 5, 6]
    assert chisquare(list(partners.values())).pvalue > 0.01


def test_augment__draws_have_the_ranges_of_the_recipe(index: ImageIndex) -> None:
    """Probabilities and color gains; the matrix is tested on its own."""
    gains, flips = [], Counter()
    config = AugmentConfig(mosaic=0, flipud=0.2)
    with (
        mock.patch.object(data.augmentation.augment, "shift_hsv", lambda image, gain: gains.append(gain) or image),
        mock.patch.object(data.augmentation.augment, "flip", lambda picture, axis: flips.update([axis]) or picture),
    ):
        for key in range(1200):
            augment(ImageSource(index, 32), 0, sample_generator(0, SampleKey(0, key)), config)
    expected = np.random.default_rng(0).uniform(-1, 1, 5000)
    for column, limit in zip(np.array(gains).T, (0.015, 0.7, 0.4), strict=True):
        assert ks_2samp(column / limit, expected).pvalue > 0.01
    assert np.abs(np.corrcoef(np.array(gains).T) - np.eye(3)).max() < 0.1  # each drawn on its own
    assert abs(flips[0] / 1200 - 0.2) < 0.04 and abs(flips[1] / 1200 - 0.5) < 0.05  # over three sigmas
