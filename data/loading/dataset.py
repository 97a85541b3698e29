"""Datasets for a DataLoader: a `SampleKey` in, a `Sample` out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from data.augmentation.augment import AugmentConfig, augment, augment_without_color
from data.augmentation.color import shift_hsv_to_planes
from data.augmentation.letterbox import pad_centered, resize_long_side
from data.augmentation.picture import LabelledImage
from data.errors import DataError
from data.indexing.index import ImageIndex
from data.loading.batch import Batch, EmptyImages, ImageGeometry, Sample, collate, empty_images, letterbox_geometry
from data.loading.cache import RecentImages
from data.loading.partners import PartnerPools
from data.loading.rectangles import rectangles_hw
from data.loading.sampler import STRIDE_PX, SampleKey, sample_generator
from data.loading.source import ImageSource

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
        color_on_device: bool = False,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            index: The training images.
            image_size: Side of the square pictures.
            augment: What is varied, and how much.
            seed: Seed of every random draw.
            max_epochs: Epochs of the run; mosaic is off in the last ``augment.close_mosaic`` of them.
            transforms: Albumentations to apply after everything else.
            color_on_device: Leave the change of colors to `Batch.colored`; not with ``transforms``, which come
                after it.
        """
        self.source = ImageSource(index, image_size)
        self.pools = PartnerPools(len(index), seed)
        self.augment = augment
        self.seed = seed
        self.max_epochs = max_epochs
        self.extra_transforms = None
        if transforms:
            from data.augmentation.extra_transforms import ExtraTransforms

            self.extra_transforms = ExtraTransforms(transforms)
        self.color_on_device = color_on_device and self.extra_transforms is None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Make one training picture.

        Raises:
            DataError: If an image file cannot be read.
        """
        return self._samples([key])[1][0]

    def __getitems__(self, keys: list[SampleKey], empty: EmptyImages = empty_images) -> Batch:
        """Make a window at once, every picture written straight to where it stays: in what ``empty`` gives.

        Raises:
            DataError: If an image file cannot be read.
        """
        images, samples = self._samples(keys, empty)
        return collate(samples, images)

    def _samples(self, keys: list[SampleKey], empty: EmptyImages = empty_images) -> tuple[torch.Tensor, list[Sample]]:
        size = (keys and keys[0].image_size) or self.source.image_size
        images = empty(len(keys), (size, size))
        return images, [self._sample(key, planes) for key, planes in zip(keys, images, strict=True)]

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
        if self.color_on_device or not gains.any():
            cv2.split(picture.image, list(planes.numpy()))  # many times faster than transposing
        else:
            shift_hsv_to_planes(picture.image, gains, planes.numpy())
        sample = _to_sample(picture, self.source.index.path(key.index), planes)
        if self.color_on_device:
            sample.hsv_gains_3 = torch.from_numpy(gains.astype(np.float32))
        return sample

    def _augmented(self, key: SampleKey) -> tuple[LabelledImage, np.ndarray]:
        """A picture, and the gains by which its colors are still to be changed."""
        rng = sample_generator(self.seed, key)
        config = self.augment.in_epoch(key.epoch, self.max_epochs)
        how = (self.source, key.index, rng, config, self.pools.pool(key.index), key.image_size)
        if self.extra_transforms is None:
            return augment_without_color(*how)
        return self.extra_transforms(augment(*how), rng), np.zeros(3)


class ValidationDataset(Dataset[Sample]):
    """Letterboxed pictures, with what maps boxes back to the original ones."""

    def __init__(
        self, index: ImageIndex, image_size: int, rectangular: bool = False, stride_px: int = STRIDE_PX
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            index: The images to validate on.
            image_size: Side of the square pictures.
            rectangular: Pad each picture to its rectangle, see `data.loading.rectangles`, rather than to a square. Keys
                that are asked for together are then of one rectangle, as `data.loading.rectangles.RectangleSampler`
                gives them.
            stride_px: Sides of rectangles are multiples of it: the network's largest stride.

        Memory: 8 bytes an image for rectangles.
        """
        self.source = ImageSource(index, image_size)
        self.rectangles_hw = rectangles_hw(index.sizes_hw, image_size, stride_px) if rectangular else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read and letterbox one image; the epoch is of no importance.

        Raises:
            DataError: If the image file cannot be read.
        """
        return self._samples([key])[1][0]

    def __getitems__(self, keys: list[SampleKey], empty: EmptyImages = empty_images) -> Batch:
        """Read a batch at once, every picture written straight to where it stays: in what ``empty`` gives.

        Raises:
            DataError: If an image file cannot be read.
        """
        images, samples = self._samples(keys, empty)
        return collate(samples, images)

    def _samples(self, keys: list[SampleKey], empty: EmptyImages = empty_images) -> tuple[torch.Tensor, list[Sample]]:
        images = empty(len(keys), self._input_hw(keys[0] if keys else None))
        return images, [self._sample(key, planes) for key, planes in zip(keys, images, strict=True)]

    def _input_hw(self, key: SampleKey | None) -> tuple[int, int]:
        if self.rectangles_hw is None or key is None:
            return self.source.image_size, self.source.image_size
        height, width = self.rectangles_hw[key.index].tolist()
        return height, width

    def _sample(self, key: SampleKey, planes: torch.Tensor) -> Sample:
        picture, original_hw = self.source.load_with_size(key.index)
        path, size_hw = self.source.index.path(key.index), self._input_hw(key)
        if any(side > limit for side, limit in zip(picture.image.shape, size_hw, strict=False)):
            error = DataError(f"{path}: its shape has changed since the data set was indexed. Start the run again.")
            gray = self.source.broken.replace(key.index, error)
            original_hw = gray.shape[:2]
            gray = resize_long_side(gray, self.source.image_size)
            picture = LabelledImage(gray, picture.boxes_xyxy_px[:0], picture.classes[:0])
        padded, (left, top) = pad_centered(picture.image, size_hw)
        cv2.split(padded, list(planes.numpy()))
        boxes = picture.boxes_xyxy_px + np.array([left, top, left, top], np.float32)
        geometry = letterbox_geometry(original_hw, picture.image.shape[:2], (left, top))
        return _to_sample(LabelledImage(padded, boxes, picture.classes), path, planes, geometry)


def _to_sample(
    picture: LabelledImage, name: str, planes: torch.Tensor, geometry: ImageGeometry | None = None
) -> Sample:
    """A sample of a picture that was written to ``planes``, uint8 (3, H, W)."""
    return Sample(
        image=planes,
        boxes_xyxy_px=torch.from_numpy(picture.boxes_xyxy_px),
        classes=torch.from_numpy(picture.classes.astype(np.int64)),
        name=name,
        geometry=geometry,
    )
