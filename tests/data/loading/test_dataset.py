"""Datasets: keys in, samples out."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch

from data.augmentation.augment import AugmentConfig, augment
from data.indexing.index import ImageIndex
from data.loading.batch import Sample, to_original_px
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.sampler import SampleKey, epoch_order, sample_generator


def make_train(index: ImageIndex, **changes: object) -> TrainDataset:
    settings = {"image_size": 64, "augment": AugmentConfig(close_mosaic=2), "seed": 3, "max_epochs": 5}
    return TrainDataset(index, **(settings | changes))


def assert_equal(a: Sample, b: Sample) -> None:
    for name in ("image", "boxes_xyxy_px", "classes"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.name == b.name


class TestTrainDataset:
    def test_types_and_shapes(self, index: ImageIndex) -> None:
        dataset = make_train(index)
        assert len(dataset) == 7
        sample = dataset[SampleKey(0, 3)]
        assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 64, 64)
        assert sample.image.is_contiguous()
        assert sample.boxes_xyxy_px.dtype == torch.float32 and sample.boxes_xyxy_px.shape[1] == 4
        assert sample.classes.dtype == torch.int64 and len(sample.classes) == len(sample.boxes_xyxy_px) > 0
        assert sample.name == index.path(3) and sample.geometry is None

    def test_is_the_augmented_picture_channel_by_channel(self, index: ImageIndex) -> None:
        dataset = make_train(index)
        rng = sample_generator(3, SampleKey(1, 2))
        pool = epoch_order(7, seed=3, epoch=1)
        picture = augment(dataset.source, 2, rng, dataset.augment, pool)
        assert np.array_equal(dataset[SampleKey(1, 2)].image.numpy(), picture.image.transpose(2, 0, 1))

    def test_sample_follows_from_its_key(self, index: ImageIndex) -> None:
        dataset, fresh = make_train(index), make_train(index)
        keys = [SampleKey(epoch, image) for epoch in range(2) for image in range(7)]
        samples = [dataset[key] for key in keys]
        for key, sample in reversed(list(zip(keys, samples, strict=True))):
            assert_equal(fresh[key], sample)
        assert not torch.equal(samples[0].image, samples[7].image)
        assert not torch.equal(make_train(index, seed=4)[keys[0]].image, samples[0].image)

    def test_mosaic_ends_before_the_run(self, index: ImageIndex) -> None:
        """The last epochs read one image per sample; with all ranges at 0 it is only letterboxed."""
        still = AugmentConfig(translate=0, scale=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, close_mosaic=2)
        dataset, validation = make_train(index, augment=still), ValidationDataset(index, 64)
        for image in (0, 1, 2, 3, 5):  # an odd border would make the warp interpolate
            plain = validation[SampleKey(0, image)].image
            assert not torch.equal(dataset[SampleKey(2, image)].image, plain)
            for epoch in (3, 4):
                assert torch.equal(dataset[SampleKey(epoch, image)].image, plain)

    def test_extra_transforms_come_last_and_repeat(self, index: ImageIndex) -> None:
        key = SampleKey(0, 3)
        plain = make_train(index)[key]
        inverted = make_train(index, transforms=[A.InvertImg(p=1)])[key]
        assert torch.equal(inverted.image, 255 - plain.image)
        assert torch.equal(inverted.boxes_xyxy_px, plain.boxes_xyxy_px)
        noisy = make_train(index, transforms=[A.GaussNoise(p=1), A.ChannelShuffle(p=0.5)])
        assert_equal(noisy[key], make_train(index, transforms=[A.GaussNoise(p=1), A.ChannelShuffle(p=0.5)])[key])
        assert not torch.equal(noisy[key].image, plain.image)
        assert_equal(make_train(index, transforms=[])[key], plain)

    def test_color_on_device_gives_the_same_picture(self, index: ImageIndex) -> None:
        keys = [SampleKey(0, image) for image in range(7)]
        host, device = make_train(index), make_train(index, color_on_device=True)
        expected, window = host.__getitems__(keys), device.__getitems__(keys)
        assert window.hsv_gains_B3.shape == (7, 3) and expected.hsv_gains_B3 is None
        assert (window.hsv_gains_B3.abs() <= torch.tensor([0.015, 0.7, 0.4])).all()
        assert torch.equal(window.boxes_xyxy_px, expected.boxes_xyxy_px)
        assert not torch.equal(window.images, expected.images)
        colored = torch.cat([part.colored().images for part in window.split(2)])
        difference = (colored.int() - expected.images.int()).abs().float()
        assert difference.mean() < 2.5  # noise images: the 8-bit hue of the host is coarse
        assert all(part.colored().hsv_gains_B3 is None for part in window.split(2))

    def test_color_stays_on_the_host_before_extra_transforms(self, index: ImageIndex) -> None:
        changes = {"transforms": [A.InvertImg(p=1)], "color_on_device": True}
        assert make_train(index, **changes)[SampleKey(0, 3)].hsv_gains_3 is None


class TestValidationDataset:
    @pytest.mark.parametrize("image", range(7))
    def test_boxes_map_back_to_the_label_file(self, index: ImageIndex, image: int) -> None:
        sample = ValidationDataset(index, 96)[SampleKey(0, image)]
        boxes, classes = index.labels(image)
        height, width = sample.geometry.original_size_B2[0].tolist()
        original = to_original_px(sample.boxes_xyxy_px, sample.geometry)
        np.testing.assert_allclose(original.numpy(), boxes * [width, height, width, height], atol=1e-3)
        assert sample.classes.tolist() == classes.tolist()
        assert sample.image.shape == (3, 96, 96)

    def test_pads_with_gray_in_the_middle(self, index: ImageIndex) -> None:
        sample = ValidationDataset(index, 64)[SampleKey(0, 1)]  # 48 x 64
        assert (sample.image[:, :8] == 114).all() and (sample.image[:, 56:] == 114).all()
        assert sample.geometry.pad_B2.tolist() == [[0, 8]]
        assert sample.geometry.gain_B2.tolist() == [[1, 1]]

    def test_epoch_changes_nothing(self, index: ImageIndex) -> None:
        dataset = ValidationDataset(index, 64)
        assert_equal(dataset[SampleKey(0, 3)], dataset[SampleKey(9, 3)])
