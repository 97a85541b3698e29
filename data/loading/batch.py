"""One window of images and its boxes, as it travels from the loader to the device.

An item of the DataLoader is a whole *window*: the effective batch of one optimizer step. The engine splits it into
micro-batches on the host and moves one micro-batch at a time to the device.

Shapes: B images of H x W pixels, square except for rectangular validation; N boxes of all images together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data.augmentation.color import shift_hsv_on_device


@dataclass
class ImageGeometry:
    """How letterboxed images map back to the original images; one row per image."""

    gain_B2: Tensor
    """float32 (B, 2): input pixels per original pixel along x and y, which differ by rounding."""
    pad_B2: Tensor
    """float32 (B, 2): left and top border in input pixels."""
    original_size_B2: Tensor
    """int64 (B, 2): height and width of the original image in pixels."""

    def __getitem__(self, images: int | slice | Tensor) -> ImageGeometry:
        """The row of one image (an int), the rows of several (a slice), or a row for each box (an index tensor)."""
        rows = slice(images, images + 1) if isinstance(images, int) else images
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageGeometry:
        """A geometry with ``function`` applied to each tensor."""
        return ImageGeometry(function(self.gain_B2), function(self.pad_B2), function(self.original_size_B2))


def letterbox_geometry(
    original_hw: tuple[int, int], resized_hw: tuple[int, int], pad_xy: tuple[int, int]
) -> ImageGeometry:
    """One row of geometry, from sizes (height, width) and the left and top border, all in pixels."""
    gains = [resized_hw[1] / original_hw[1], resized_hw[0] / original_hw[0]]
    return ImageGeometry(
        gain_B2=torch.tensor([gains], dtype=torch.float32),
        pad_B2=torch.tensor([pad_xy], dtype=torch.float32),
        original_size_B2=torch.tensor([original_hw], dtype=torch.int64),
    )


def to_original_px(boxes_N4: Tensor, geometry: ImageGeometry) -> Tensor:
    """Map boxes from pixels of the network input to pixels of the original image, and clip them to it.

    Args:
        boxes_N4: Corner boxes (x1, y1, x2, y2) in pixels of the network input.
        geometry: One row for all boxes (``batch.geometry[i]``), or one row per box (``batch.geometry[image_index]``).

    Returns:
        Corner boxes in original pixels; same shape and dtype.
    """
    corners_N22 = boxes_N4.reshape(-1, 2, 2)
    original = (corners_N22 - geometry.pad_B2[:, None]) / geometry.gain_B2[:, None]
    limit = geometry.original_size_B2.flip(1)[:, None].to(original)
    return torch.minimum(original.clamp(min=0), limit).reshape(-1, 4).to(boxes_N4.dtype)


@dataclass
class Sample:
    """One image, ready for a batch."""

    image: Tensor
    """uint8 (3, H, W), RGB."""
    boxes_xyxy_px: Tensor
    """float32 (n, 4), corner boxes in pixels of the image."""
    classes: Tensor
    """int64 (n,)."""
    name: str
    """Path of the image file, for messages."""
    geometry: ImageGeometry | None = None
    """One row, how boxes map back to the original image; validation only."""
    hsv_gains_3: Tensor | None = None
    """float32 (3,), set if the device changes the colors: see `Batch.colored`."""


@dataclass
class Batch:
    """The images of a window (or of a micro-batch) and their boxes, sorted by image."""

    images: Tensor
    """uint8 (B, 3, H, W), RGB."""
    boxes_xyxy_px: Tensor
    """float32 (N, 4), corner boxes in pixels of the network input."""
    classes: Tensor
    """int64 (N,)."""
    image_index: Tensor
    """int64 (N,), ascending: the image of this batch that each box belongs to."""
    names: list[str]
    """Paths of the B image files, for messages."""
    geometry: ImageGeometry | None = None
    """How boxes map back to the original images; validation only."""
    hsv_gains_B3: Tensor | None = None
    """float32 (B, 3), set if the device changes the colors: see `colored`."""

    def __len__(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        geometry = vars(self.geometry).values() if self.geometry is not None else ()
        return [value for value in (*vars(self).values(), *geometry) if isinstance(value, Tensor)]

    def split(self, micro_batch_size: int) -> list[Batch]:
        """Cut into micro-batches of ``micro_batch_size`` images, in order; the last one may be smaller.

        Images and boxes are views of this batch; only ``image_index`` is new. Call it on the host: it reads
        ``image_index``, which would wait for a device.
        """
        starts = range(0, len(self), micro_batch_size)
        first_box = torch.searchsorted(self.image_index, torch.tensor([*starts, len(self)])).tolist()
        return [
            self._slice(slice(start, start + micro_batch_size), slice(box_start, box_stop))
            for start, (box_start, box_stop) in zip(starts, pairwise(first_box), strict=True)
        ]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy to a device; with ``non_blocking`` the copy of a pinned batch overlaps with the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def colored(self) -> Batch:
        """The batch with its colors changed on the device, if the loader left that to the device."""
        if self.hsv_gains_B3 is None:
            return self
        return replace(self, images=shift_hsv_on_device(self.images, self.hsv_gains_B3), hsv_gains_B3=None)

    def pin_memory(self) -> Batch:
        """Copy into page-locked memory; the DataLoader calls this in its pinning thread."""
        return self._map(Tensor.pin_memory)

    def _slice(self, images: slice, boxes: slice) -> Batch:
        return Batch(
            images=self.images[images],
            boxes_xyxy_px=self.boxes_xyxy_px[boxes],
            classes=self.classes[boxes],
            image_index=self.image_index[boxes] - images.start,
            names=self.names[images],
            geometry=self.geometry and self.geometry[images],
            hsv_gains_B3=None if self.hsv_gains_B3 is None else self.hsv_gains_B3[images],
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            images=function(self.images),
            boxes_xyxy_px=function(self.boxes_xyxy_px),
            classes=function(self.classes),
            image_index=function(self.image_index),
            names=self.names,
            geometry=self.geometry and self.geometry.map(function),
            hsv_gains_B3=None if self.hsv_gains_B3 is None else function(self.hsv_gains_B3),
        )


EmptyImages = Callable[[int, tuple[int, int]], Tensor]
"""Returns unset uint8 (B, 3, H, W) for a number of images and their (height, width)."""


def empty_images(num_images: int, size_hw: tuple[int, int]) -> Tensor:
    """Unset uint8 (num_images, 3, height, width); in a worker in shared memory, which is sent without a copy."""
    shape = (num_images, 3, *size_hw)
    if get_worker_info() is None or num_images == 0:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def collate(samples: list[Sample], images: Tensor | None = None) -> Batch:
    """Put samples together into one batch, in their order; geometry and gains only if all samples have them.

    Args:
        samples: Any number of samples, also none.
        images: uint8 (B, 3, H, W) that the images of the samples are views of; None copies them.
    """
    counts = torch.tensor([len(sample.classes) for sample in samples], dtype=torch.int64)
    no_boxes, no_classes = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    geometries = [sample.geometry for sample in samples if sample.geometry is not None]
    gains = [sample.hsv_gains_3 for sample in samples if sample.hsv_gains_3 is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]) if images is None else images,
        boxes_xyxy_px=torch.cat([no_boxes, *(sample.boxes_xyxy_px for sample in samples)]),
        classes=torch.cat([no_classes, *(sample.classes for sample in samples)]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        names=[sample.name for sample in samples],
        geometry=_join(geometries) if 0 < len(geometries) == len(samples) else None,
        hsv_gains_B3=torch.stack(gains) if 0 < len(gains) == len(samples) else None,
    )


def _join(rows: list[ImageGeometry]) -> ImageGeometry:
    return ImageGeometry(*map(torch.cat, zip(*(vars(row).values() for row in rows), strict=True)))
