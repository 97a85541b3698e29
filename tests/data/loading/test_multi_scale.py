"""Multi-scale training: the size of each window, and images that show the same at any size."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from data.augmentation.augment import AugmentConfig, augment
from data.indexing.index import ImageIndex
from data.loading.dataset import TrainDataset
from data.loading.loader import build_train_loader
from data.loading.sampler import SampleKey, WindowSampler, image_sizes, sample_generator
from data.loading.source import ImageSource

PLAIN = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0)


@pytest.mark.parametrize(
    ("image_size", "multi_scale", "expected"),
    [
        (640, 0.0, [640]),
        (640, 0.1, [576, 608, 640, 672, 704]),
        (96, 0.5, [64, 96, 128]),
        (64, 0.9, [32, 64, 96]),
        (640, 0.04, [640]),
    ],
)
def test_image_sizes__multiples_of_the_stride_within_the_part(
    image_size: int, multi_scale: float, expected: list[int]
) -> None:
    assert list(image_sizes(image_size, multi_scale)) == expected


def sizes(sampler: WindowSampler) -> list[int]:
    windows = [{key.image_size for key in window} for window in sampler]
    assert all(len(window) == 1 for window in windows)
    return [window.pop() for window in windows]


def test_window_sampler__one_size_a_window_evenly_drawn_and_the_same_on_all_ranks() -> None:
    assert list(image_sizes(640, 0.25, 64)) == [512, 576, 640, 704, 768]
    choice = image_sizes(640, 0.5)
    arguments = {"num_images": 6000, "batch_size": 4, "seed": 3, "shuffle": True, "image_sizes": choice}
    drawn = sizes(WindowSampler(**arguments))
    assert chisquare([Counter(drawn)[size] for size in choice]).pvalue > 0.01
    for rank in range(2):
        assert sizes(WindowSampler(**arguments, num_replicas=2, rank=rank)) == drawn
    assert sizes(WindowSampler(**arguments, epoch=1)) != drawn
    assert sizes(WindowSampler(**arguments, start_window=100)) == drawn[100:]  # a resumed run continues with its sizes
    order = [key.index for window in WindowSampler(**arguments) for key in window]
    del arguments["image_sizes"]
    assert order == [key.index for window in WindowSampler(**arguments) for key in window]


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("size", [64, 128, 160])
def test_augment__shows_the_same_at_another_size(index: ImageIndex, size: int, degrees: float) -> None:
    config = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0, degrees=degrees)
    for image in range(7):
        key = SampleKey(0, image)
        usual, other = (
            augment(ImageSource(index, 96), image, sample_generator(0, key), config, output_size=output_size)
            for output_size in (0, size)
        )
        assert usual.image.shape == (96, 96, 3) and other.image.shape == (size, size, 3)
        # noise does not survive resizing, but its mean over a quarter of the picture does
        means = [cv2.resize(picture.image, (4, 4), interpolation=cv2.INTER_AREA) for picture in (usual, other)]
        assert np.abs(means[0].astype(float) - means[1]).mean() < 12
        zoomed = usual.boxes_xyxy_px * (size / 96)
        if len(zoomed) == len(other.boxes_xyxy_px):  # else a box was on the edge of being too small
            assert np.abs(zoomed - other.boxes_xyxy_px).max(initial=0) < 1.5 * max(size / 96, 1)
            assert usual.classes.tolist() == other.classes.tolist()


def test_build_train_loader__windows_of_several_sizes(index: ImageIndex) -> None:
    dataset = TrainDataset(index, 96, PLAIN, seed=1, max_epochs=100)
    loader = build_train_loader(dataset, 2, multi_scale=0.5)
    seen = set()
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        for window in loader:
            size = window.images.shape[2]
            assert window.images.shape == (len(window), 3, size, size)
            assert ((window.boxes_xyxy_px >= 0) & (window.boxes_xyxy_px <= size)).all()
            seen.add(size)
    assert seen == {64, 96, 128}
    fixed = next(iter(build_train_loader(dataset, 7)))
    assert fixed.images.shape == (7, 3, 96, 96) and fixed.images.dtype == torch.uint8
