"""The training augmentation, read from top to bottom: mosaic, affine warp, colour, flips.

Every random number of a sample comes from one generator, seeded by (seed, epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data.affine import draw_affine_matrix, visible_window, warp
from data.color import shift_hsv
from data.errors import DataError
from data.mosaic import NUM_TILES, build_mosaic, draw_mosaic_centre
from data.sampler import SampleKey
from data.source import ImageSource, LabelledImage

_RANGES = {  # key: (lowest, highest) that makes sense
    "mosaic": (0, 1),
    "degrees": (0, 180),
    "translate": (0, 1),
    "scale": (0, 0.95),
    "shear": (0, 80),
    "perspective": (0, 0.001),
    "hsv_h": (0, 1),
    "hsv_s": (0, 1),
    "hsv_v": (0, 1),
    "flipud": (0, 1),
    "fliplr": (0, 1),
}


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied; the defaults are the Ultralytics recipe."""

    mosaic: float = 1.0
    """Probability of putting four images together into one."""
    close_mosaic: int = 10
    """Epochs at the end of the run without mosaic; a run of no more epochs than this has none at all."""
    degrees: float = 0.0
    """Rotation by up to so many degrees, either way (0 to 180)."""
    translate: float = 0.1
    """Shift by up to this part of the image size, either way."""
    scale: float = 0.5
    """Scale by 1 - scale to 1 + scale (0 to 0.95)."""
    shear: float = 0.0
    """Shear by up to so many degrees along each axis, either way (0 to 80)."""
    perspective: float = 0.0
    """Perspective distortion, per pixel (0 to 0.001)."""
    hsv_h: float = 0.015
    """Hue is turned by up to this part of the circle, either way."""
    hsv_s: float = 0.7
    """Saturation is scaled by 1 - hsv_s to 1 + hsv_s."""
    hsv_v: float = 0.4
    """Brightness is scaled by 1 - hsv_v to 1 + hsv_v."""
    flipud: float = 0.0
    """Probability of turning the image upside down."""
    fliplr: float = 0.5
    """Probability of mirroring the image."""

    def __post_init__(self) -> None:
        for key, (lowest, highest) in _RANGES.items():
            value = getattr(self, key)
            if not lowest <= value <= highest:
                raise DataError(f"data.augment.{key} is {value}: give a number from {lowest} to {highest}")
        if self.close_mosaic < 0:
            raise DataError(f"data.augment.close_mosaic is {self.close_mosaic}: give 0 or more epochs")

    def mosaic_probability(self, epoch: int, max_epochs: int) -> float:
        """Probability of a mosaic in one epoch of a run: none in the last ``close_mosaic`` epochs."""
        return 0.0 if epoch >= max_epochs - self.close_mosaic else self.mosaic


def sample_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """The generator of all random draws of one sample."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key.epoch, key.index])))


def augment(
    source: ImageSource,
    index: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    mosaic_probability: float,
) -> LabelledImage:
    """Make one training picture.

    Args:
        source: The images of the training split, of size ``source.image_size``.
        index: The image that the sample is about; mosaic partners are drawn from the whole source.
        rng: The sample's generator.
        config: Ranges and probabilities.
        mosaic_probability: Takes the place of ``config.mosaic``, for it depends on the epoch.

    Returns:
        A square picture of the image size, its boxes inside it.

    Memory: the mosaic canvas, 12 * image_size**2 bytes, for a moment.
    """
    size = source.image_size
    if rng.random() < mosaic_probability:
        tiles = [index, *rng.integers(len(source), size=NUM_TILES - 1).tolist()]
        centre_xy = draw_mosaic_centre(rng, size)
        matrix, scale = _draw_matrix(rng, (2 * size, 2 * size), size, config)
        window = visible_window(matrix, size)
        picture = build_mosaic(source.load, tiles, centre_xy, size, window)
    else:
        picture = source.load(index)
        matrix, scale = _draw_matrix(rng, picture.image.shape[:2], size, config)
    picture = warp(picture, matrix, scale, size)
    gains = rng.uniform(-1, 1, size=3) * (config.hsv_h, config.hsv_s, config.hsv_v)
    if gains.any():
        picture = picture._replace(image=shift_hsv(picture.image, gains))
    if rng.random() < config.flipud:
        picture = flip(picture, axis=0)
    if rng.random() < config.fliplr:
        picture = flip(picture, axis=1)
    return picture


def _draw_matrix(
    rng: np.random.Generator, source_hw: tuple[int, int], size: int, config: AugmentConfig
) -> tuple[np.ndarray, float]:
    return draw_affine_matrix(
        rng,
        source_hw,
        size,
        degrees=config.degrees,
        translate=config.translate,
        scale=config.scale,
        shear=config.shear,
        perspective=config.perspective,
    )


def flip(picture: LabelledImage, axis: int) -> LabelledImage:
    """Mirror a picture and its boxes: top to bottom (axis 0) or left to right (axis 1)."""
    length = picture.image.shape[axis]
    low, high = (1, 3) if axis == 0 else (0, 2)
    boxes = picture.boxes_xyxy_px.copy()
    boxes[:, low] = length - picture.boxes_xyxy_px[:, high]
    boxes[:, high] = length - picture.boxes_xyxy_px[:, low]
    return picture._replace(image=cv2.flip(picture.image, axis), boxes_xyxy_px=boxes)
