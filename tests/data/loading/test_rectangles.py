"""Rectangular validation: shapes follow from the image alone, boxes map back, every image comes once."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.indexing.index import ImageIndex
from data.loading.batch import to_original_px
from data.loading.dataset import ValidationDataset
from data.loading.loader import build_validation_loader
from data.loading.rectangles import RectangleSampler, rectangles_hw
from data.loading.sampler import SampleKey


def test_rectangles_hw__both_sides_rounded_up_to_the_stride() -> None:
    sizes_hw = np.array([[480, 640], [640, 480], [1000, 1000], [20, 20000], [427, 640], [1, 3], [481, 640]])
    expected = [[480, 640], [640, 480], [640, 640], [32, 640], [448, 640], [224, 640], [512, 640]]
    assert rectangles_hw(sizes_hw, 640).tolist() == expected


def test_rectangles__are_multiples_of_the_stride() -> None:
    sizes_hw = np.array([[480, 640], [100, 640]])
    assert rectangles_hw(sizes_hw, 640, 64).tolist() == [[512, 640], [128, 640]]
    assert rectangles_hw(sizes_hw, 80, 16).tolist() == [[64, 80], [16, 80]]


def test_rectangles_hw__hold_the_resized_picture(index: ImageIndex) -> None:
    dataset = ValidationDataset(index, 96, rectangular=True)
    for image, (height, width) in enumerate(rectangles_hw(index.sizes_hw, 96).tolist()):
        resized = dataset.source.load(image).image
        assert 0 <= height - resized.shape[0] < 32 and 0 <= width - resized.shape[1] < 32
        assert dataset[SampleKey(0, image)].image.shape == (3, height, width)


def test_validation_dataset__rectangle_maps_back_to_the_file(index: ImageIndex) -> None:
    """Boxes and pixels are those of the square, shifted; both map back to the labels of the file."""
    square, rectangle = ValidationDataset(index, 96), ValidationDataset(index, 96, rectangular=True)
    for image in range(len(index)):
        a, b = square[SampleKey(0, image)], rectangle[SampleKey(0, image)]
        left, top = (a.geometry.pad_B2 - b.geometry.pad_B2)[0].int().tolist()
        height, width = b.image.shape[1:]
        inside = a.image[:, top : top + height, left : left + width]
        assert torch.equal(inside, b.image)
        assert (a.image.sum() - inside.sum()) == 114 * 3 * (96 * 96 - height * width)  # only gray was left out
        assert torch.equal(a.boxes_xyxy_px - torch.tensor([left, top, left, top]), b.boxes_xyxy_px)
        boxes_rel, _ = index.labels(image)
        height, width = index.sizes_hw[image]
        expected = torch.from_numpy(boxes_rel * np.array([width, height, width, height], np.float32))
        # the letterbox rounds sides to whole pixels, and its gain with them
        torch.testing.assert_close(to_original_px(b.boxes_xyxy_px, b.geometry), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("batch_size", "num_replicas"), [(1, 1), (2, 1), (16, 1), (2, 2), (6, 3)])
def test_rectangle_sampler__every_picture_once_and_one_shape_a_batch(batch_size: int, num_replicas: int) -> None:
    rectangles = np.array([[32, 64], [64, 64], [64, 32], [64, 64], [32, 64], [64, 64], [96, 32]])
    samplers = [RectangleSampler(rectangles, batch_size, num_replicas, rank) for rank in range(num_replicas)]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(part) for part in batches]
    keys = [key for batch in itertools.chain(*batches) for key in batch]
    assert sorted(key.index for key in keys) == list(range(7))
    for batch in itertools.chain(*batches):
        assert 0 < len(batch) <= max(batch_size // num_replicas, 1)
        assert len({tuple(rectangles[key.index]) for key in batch}) == 1
    areas = [rectangles[batch[0].index].prod() for batch in batches[0]]
    assert areas == sorted(areas, reverse=True)


def test_rectangle_sampler__a_process_without_pictures_has_an_empty_batch() -> None:
    """Lightning skips validation without a batch, while the other processes would wait for it."""
    samplers = [RectangleSampler(np.array([[32, 64]]), 2, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [[[key.index for key in batch] for batch in sampler] for sampler in samplers] == [[[0]], [[]]]
    assert [len(sampler) for sampler in samplers] == [1, 1]


def test_build_validation_loader__a_picture_is_the_same_for_any_batch_size(index: ImageIndex) -> None:
    dataset = ValidationDataset(index, 96, rectangular=True)
    seen = []
    for batch_size in (1, 3, 16):
        batches = list(build_validation_loader(dataset, batch_size))
        pictures = {batch.names[i]: batch.images[i] for batch in batches for i in range(len(batch))}
        assert sum(map(len, batches)) == len(pictures) == len(index)
        seen.append(pictures)
    for name, picture in seen[0].items():
        assert all(torch.equal(picture, other[name]) for other in seen[1:])


def test_validation_dataset__a_file_that_changed_its_shape_is_a_gray_picture(
    index: ImageIndex, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ValidationDataset(index, 96, rectangular=True)
    path, (height, width) = Path(index.path(2)), index.sizes_hw[2]  # 64 x 40: padded to 96 x 64
    cv2.imwrite(str(path), np.zeros((width, height, 3), np.uint8))
    sample = dataset[SampleKey(0, 2)]
    assert sample.image.unique().tolist() == [114] and len(sample.boxes_xyxy_px) == 0
    assert sample.geometry.original_size_B2.tolist() == [[height, width]]
    assert "shape has changed since the data set was indexed" in caplog.text
