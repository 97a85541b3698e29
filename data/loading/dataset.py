"""Data sets for a DataLoader: they turn a `SampleKey` into a `Sample`, and a list of keys into a `Batch`."""

from __future__ import annotations

from copy import copy
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
from data.loading.cache import FileCache, SlotCache
from data.loading.partners import PartnerPools
from data.loading.rectangles import rectangles_hw
from data.loading.sampler import STRIDE_PX, SampleKey, sample_generator
from data.loading.source import ImageSource

if TYPE_CHECKING:  # importing albumentations takes seconds
    import albumentations as A


class WindowDataset(Dataset[Sample]):
    """Images that are made one by one or as a whole window."""

    source: ImageSource

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Make one sample.

        Raises:
            DataError: If too many image files cannot be read.
        """
        return self._samples([key], empty_images)[1][0]

    def __getitems__(self, keys: list[SampleKey], empty: EmptyImages = empty_images) -> Batch:
        """Make a window at once: each image is written straight to its place in the tensor that ``empty`` gives.

        Raises:
            DataError: If too many image files cannot be read.
        """
        images, samples = self._samples(keys, empty)
        return collate(samples, images)

    def _samples(self, keys: list[SampleKey], empty: EmptyImages) -> tuple[torch.Tensor, list[Sample]]:
        images = empty(len(keys), self._input_hw(keys[0] if keys else None))
        return images, [self._sample(key, planes) for key, planes in zip(keys, images, strict=True)]

    def _input_hw(self, key: SampleKey | None) -> tuple[int, int]:
        """Height and width of every image of a window that begins with ``key``; None for an empty window."""
        raise NotImplementedError

    def _sample(self, key: SampleKey, planes: torch.Tensor) -> Sample:
        """Write one image to ``planes``, uint8 (3, H, W), and return its sample."""
        raise NotImplementedError


class TrainDataset(WindowDataset):
    """Augmented training images; a sample depends on its key and the configuration alone."""

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
            image_size: Side of the square images in pixels.
            augment: Ranges and probabilities of the augmentation.
            seed: Seed of every random draw.
            max_epochs: Epochs of the run; mosaic is off in the last ``augment.close_mosaic`` of them.
            transforms: Albumentations transforms, applied after everything else.
            color_on_device: Leave the change of colors to `Batch.colored`; no effect with ``transforms``.
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

    def with_caches(
        self, cache: SlotCache | None = None, files: FileCache | None = None, pools: PartnerPools | None = None
    ) -> TrainDataset:
        """The same data set with other caches, for a loader that has not started its workers.

        ``cache`` keeps decoded images, ``files`` the content of files; without ``pools`` mosaic partners stay the same.
        """
        dataset = copy(self)
        dataset.source = ImageSource(self.source.index, self.source.image_size, cache, files)
        dataset.pools = pools or self.pools
        return dataset

    def _input_hw(self, key: SampleKey | None) -> tuple[int, int]:
        size = (key.image_size if key else 0) or self.source.image_size
        return size, size

    def _sample(self, key: SampleKey, planes: torch.Tensor) -> Sample:
        self.pools.set_epoch(key.epoch)
        cache = self.source.cache
        if cache is not None:
            cache.begin(key.epoch)
        picture, gains = self._augmented(self.source, key)
        if cache is not None and not cache.is_intact():  # another worker wrote over an image while it was in use
            picture, gains = self._augmented(self.source.without_cache(), key)
        if self.color_on_device or not gains.any():
            cv2.split(picture.image, list(planes.numpy()))  # many times faster than transposing
        else:
            shift_hsv_to_planes(picture.image, gains, planes.numpy())
        sample = _to_sample(picture, self.source.index.path(key.index), planes)
        if self.color_on_device:
            sample.hsv_gains_3 = torch.from_numpy(gains.astype(np.float32))
        return sample

    def _augmented(self, source: ImageSource, key: SampleKey) -> tuple[LabelledImage, np.ndarray]:
        """An image, and the gains by which its colors are still to be changed."""
        rng = sample_generator(self.seed, key)
        config = self.augment.in_epoch(key.epoch, self.max_epochs)
        how = (source, key.index, rng, config, self.pools.pool(key.index), key.image_size)
        if self.extra_transforms is None:
            return augment_without_color(*how)
        return self.extra_transforms(augment(*how), rng), np.zeros(3)


class ValidationDataset(WindowDataset):
    """Letterboxed images, with the geometry that maps boxes back to the original images."""

    def __init__(
        self, index: ImageIndex, image_size: int, rectangular: bool = False, stride_px: int = STRIDE_PX
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            index: The images to validate on.
            image_size: Side of the square images in pixels.
            rectangular: Pad each image to its rectangle, not to a square. The keys of a window must then be of one
                rectangle, as from `data.loading.rectangles.RectangleSampler`. Takes 8 bytes an image.
            stride_px: Sides of rectangles are multiples of this, the largest stride of the network.
        """
        self.source = ImageSource(index, image_size)
        self.rectangles_hw = rectangles_hw(index.sizes_hw, image_size, stride_px) if rectangular else None

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
    """The sample of an image that was written to ``planes``, uint8 (3, H, W)."""
    return Sample(
        image=planes,
        boxes_xyxy_px=torch.from_numpy(picture.boxes_xyxy_px),
        classes=torch.from_numpy(picture.classes.astype(np.int64)),
        name=name,
        geometry=geometry,
    )
