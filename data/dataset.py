"""Datasets for a DataLoader: a `SampleKey` in, a `Sample` out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from data.augment import AugmentConfig, augment, augment_without_colour, sample_generator
from data.batch import Batch, ImageGeometry, Sample, collate, empty_images
from data.cache import RecentImages
from data.index import ImageIndex
from data.letterbox import letterbox_geometry, pad_to_square
from data.partners import PartnerPools
from data.sampler import SampleKey
from data.source import ImageSource, LabelledImage

if TYPE_CHECKING:  # importing albumentations takes seconds; only who uses it pays
    import albumentations as A


class TrainDataset(Dataset[Sample]):
    """Augmented training pictures: sample ``(epoch, index)`` is a function of the configuration alone."""

    def __init__(
        self,
        index: ImageIndex,
        image_size: int,
        augment: AugmentConfig,
        seed: int,
        max_epochs: int,
        transforms: list[A.BasicTransform] | None = None,
        colour_on_device: bool = False,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            index: The training images.
            image_size: Side of the square pictures.
            augment: What is varied, and how much.
            seed: Seed of every random draw.
            max_epochs: Epochs of the run; mosaic is off in the last ``augment.close_mosaic`` of them.
            transforms: Albumentations to apply after everything else.
            colour_on_device: Leave the change of colours to `Batch.coloured`; not with ``transforms``, which come
                after it.
        """
        self.source = ImageSource(index, image_size, reduce=True)
        self.pools = PartnerPools(len(index), seed)
        self.augment = augment
        self.seed = seed
        self.max_epochs = max_epochs
        self.extra_transforms = None
        if transforms:
            from data.extra_transforms import ExtraTransforms

            self.extra_transforms = ExtraTransforms(transforms)
        self.colour_on_device = colour_on_device and self.extra_transforms is None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Make one training picture.

        Raises:
            DataError: If an image file cannot be read.
        """
        return self._sample(key, empty_images(1, self.source.image_size)[0])

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        """Make a window at once, every picture written straight to where it stays.

        Raises:
            DataError: If an image file cannot be read.
        """
        images = empty_images(len(keys), self.source.image_size)
        return collate([self._sample(key, planes) for key, planes in zip(keys, images, strict=True)], images)

    def _sample(self, key: SampleKey, planes: torch.Tensor) -> Sample:
        self.pools.set_epoch(key.epoch)
        cache = self.source.cache
        if isinstance(cache, RecentImages):
            cache.set_epoch(key.epoch)
        if cache is not None:
            cache.begin()
        picture, gains = self._augmented(key)
        if cache is not None and not cache.is_intact():  # a picture was overwritten while it was in use
            self.source.cache = None
            picture, gains = self._augmented(key)
            self.source.cache = cache
        return replace(_to_sample(picture, self.source.index.path(key.index), planes), hsv_gains_3=gains)

    def _augmented(self, key: SampleKey) -> tuple[LabelledImage, torch.Tensor | None]:
        rng = sample_generator(self.seed, key)
        config = self.augment.in_epoch(key.epoch, self.max_epochs)
        pool = self.pools.pool(key.index)
        if self.colour_on_device:
            picture, gains = augment_without_colour(self.source, key.index, rng, config, pool)
            return picture, torch.from_numpy(gains.astype(np.float32))
        picture = augment(self.source, key.index, rng, config, pool)
        return picture if self.extra_transforms is None else self.extra_transforms(picture, rng), None


class ValidationDataset(Dataset[Sample]):
    """Letterboxed pictures, with what maps boxes back to the original ones."""

    def __init__(self, index: ImageIndex, image_size: int) -> None:
        """Prepare; nothing is read yet.

        Args:
            index: The images to validate on.
            image_size: Side of the square pictures.
        """
        self.source = ImageSource(index, image_size)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read and letterbox one image; the epoch is of no importance.

        Raises:
            DataError: If the image file cannot be read.
        """
        return self._sample(key, empty_images(1, self.source.image_size)[0])

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        """Read a batch at once, every picture written straight to where it stays.

        Raises:
            DataError: If an image file cannot be read.
        """
        images = empty_images(len(keys), self.source.image_size)
        return collate([self._sample(key, planes) for key, planes in zip(keys, images, strict=True)], images)

    def _sample(self, key: SampleKey, planes: torch.Tensor) -> Sample:
        picture, original_hw = self.source.load_with_size(key.index)
        square, (left, top) = pad_to_square(picture.image, self.source.image_size)
        boxes = picture.boxes_xyxy_px + np.array([left, top, left, top], np.float32)
        geometry = letterbox_geometry(original_hw, picture.image.shape[:2], (left, top))
        letterboxed = LabelledImage(square, boxes, picture.classes)
        return _to_sample(letterboxed, self.source.index.path(key.index), planes, geometry)


def _to_sample(
    picture: LabelledImage, name: str, planes: torch.Tensor, geometry: ImageGeometry | None = None
) -> Sample:
    """Write a picture into ``planes``, uint8 (3, S, S), and put the rest beside it."""
    cv2.split(picture.image, list(planes.numpy()))  # into place; many times faster than transposing
    return Sample(
        image=planes,
        boxes_xyxy_px=torch.from_numpy(picture.boxes_xyxy_px),
        classes=torch.from_numpy(picture.classes.astype(np.int64)),
        name=name,
        geometry=geometry,
    )
