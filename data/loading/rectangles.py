"""Rectangular validation: pads every image to a rectangle of its own shape instead of a square.

The rectangle of an image follows from its own size alone: its two sides at the image size, each rounded up to a
multiple of the stride. Only images of one rectangle share a batch. What the network sees of an image, and every metric,
is therefore the same for any batch size and any number of devices. This is not so in trainers that pad a batch to its
widest image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from data.loading.sampler import STRIDE_PX, SampleKey


def rectangles_hw(sizes_hw: np.ndarray, image_size: int, stride_px: int = STRIDE_PX) -> np.ndarray:
    """The network's input size for each image: int32 (I, 2), height and width, multiples of ``stride_px``.

    The larger one is ``image_size``, a multiple of ``stride_px``. ``sizes_hw`` is int (I, 2), the sizes of the files.
    """
    resized = np.ceil(sizes_hw * (image_size / sizes_hw.max(axis=1, keepdims=True))).clip(max=image_size)
    return (np.ceil(resized / stride_px) * stride_px).astype(np.int32)


class RectangleSampler(Sampler[list[SampleKey]]):
    """This process's share of batches whose images have one rectangle; every image once over all processes.

    Large rectangles come first, so that too little memory shows at once. Processes may have different numbers of
    batches; each has at least one, which may be empty.
    """

    def __init__(self, rectangles_I2: np.ndarray, batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        """Prepare the batches of ``batch_size`` images over all processes, from `rectangles_hw`."""
        shapes, group = np.unique(rectangles_I2, axis=0, return_inverse=True)
        by_area = np.argsort(-shapes.prod(axis=1), kind="stable")
        group = group.reshape(-1)  # numpy 2.0 gives it a second axis
        groups = [images[rank::num_replicas] for images in (np.flatnonzero(group == shape) for shape in by_area)]
        share = max(batch_size // num_replicas, 1)
        batches = [images[start : start + share] for images in groups for start in range(0, len(images), share)]
        self._batches = batches or [np.empty(0, np.int64)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return ([SampleKey(0, image) for image in images.tolist()] for images in self._batches)
