"""The training augmentation from top to bottom: mosaic, affine warp, mixup, cutmix, color, flips.

Every random number of a sample comes from one generator, seeded by (seed, epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.augmentation.affine import draw_affine_matrix, visible_window, warp
from data.augmentation.color import shift_hsv
from data.augmentation.mix import cutmix, mixup
from data.augmentation.mosaic import NUM_TILES, build_mosaic, draw_mosaic_center
from data.augmentation.picture import LabelledImage, PictureSource
from data.augmentation.place import Tile, mosaic_tiles, only_scales_and_shifts, place_tiles
from data.errors import DataError

_RANGES = {  # key: lowest and highest value
    "mosaic": (0, 1),
    "mixup": (0, 1),
    "cutmix": (0, 1),
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
    """Ranges and probabilities of the augmentation; the defaults are the Ultralytics recipe."""

    mosaic: float = 1.0
    """Probability of making one image from four."""
    mixup: float = 0.0
    """Probability of blending in a second image. Doubles the time of the image and takes 50 * image_size**2 bytes for a
    moment."""
    cutmix: float = 0.0
    """Probability of pasting in part of a second image. Doubles the time of the image and holds two images at once."""
    close_mosaic: int = 10
    """Epochs at the end of the run without mosaic, mixup and cutmix. A run of no more epochs never uses them."""
    degrees: float = 0.0
    """Largest rotation in degrees, either way (0 to 180). Each worker needs a canvas of 12 * image_size**2 bytes."""
    translate: float = 0.1
    """Largest shift as a part of the image size, either way."""
    scale: float = 0.5
    """Scale by 1 - scale to 1 + scale (0 to 0.95)."""
    shear: float = 0.0
    """Largest shear in degrees along each axis, either way (0 to 80). Needs the same canvas as ``degrees``."""
    perspective: float = 0.0
    """Perspective distortion, per pixel (0 to 0.001). Needs the same canvas as ``degrees``."""
    hsv_h: float = 0.015
    """Largest turn of the hue as a part of the circle, either way."""
    hsv_s: float = 0.7
    """Scale the saturation by 1 - hsv_s to 1 + hsv_s."""
    hsv_v: float = 0.4
    """Scale the brightness by 1 - hsv_v to 1 + hsv_v."""
    flipud: float = 0.0
    """Probability of turning the image upside down."""
    fliplr: float = 0.5
    """Probability of mirroring the image."""

    def __post_init__(self) -> None:
        for key, (lowest, highest) in _RANGES.items():
            value = getattr(self, key)
            if not lowest <= value <= highest:
                raise DataError(f"data.augment.{key}: {value}: out of range. Give a number from {lowest} to {highest}.")
        if self.close_mosaic < 0:
            raise DataError(f"data.augment.close_mosaic: {self.close_mosaic}: negative. Give 0 or more epochs.")

    def in_epoch(self, epoch: int, max_epochs: int) -> AugmentConfig:
        """The settings of one epoch: the last ``close_mosaic`` epochs have single images only."""
        is_closed = epoch >= max_epochs - self.close_mosaic
        return replace(self, mosaic=0.0, mixup=0.0, cutmix=0.0) if is_closed else self


def augment(
    source: PictureSource,
    index: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    pool: np.ndarray | None = None,
    output_size: int = 0,
) -> LabelledImage:
    """Make one training image.

    Args:
        source: The training images, with a long side of ``source.image_size``.
        index: The image of the sample.
        rng: The sample's generator.
        config: Ranges and probabilities of the epoch, see `AugmentConfig.in_epoch`.
        pool: int64, the images that may be mixed in (`data.loading.partners`); None for all.
        output_size: Side of the result in pixels; 0 for the image size. The content does not depend on it.

    Returns:
        A square image with its boxes inside it.
    """
    picture, gains = augment_without_color(source, index, rng, config, pool, output_size)
    return picture._replace(image=shift_hsv(picture.image, gains)) if gains.any() else picture


def augment_without_color(
    source: PictureSource,
    index: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    pool: np.ndarray | None = None,
    output_size: int = 0,
) -> tuple[LabelledImage, np.ndarray]:
    """As `augment`, but returns the gains of hue, saturation and value and leaves the colors unchanged."""
    partners = np.arange(len(source)) if pool is None else pool
    output_size = output_size or source.image_size
    picture = _compose(source, index, rng, config, partners, output_size)
    for probability, mix in ((config.mixup, mixup), (config.cutmix, cutmix)):
        if rng.random() < probability:
            other = int(partners[rng.integers(len(partners))])
            picture = mix(picture, _compose(source, other, rng, config, partners, output_size), rng)
    gains = rng.uniform(-1, 1, size=3) * (config.hsv_h, config.hsv_s, config.hsv_v)
    if rng.random() < config.flipud:
        picture = flip(picture, axis=0)
    if rng.random() < config.fliplr:
        picture = flip(picture, axis=1)
    return picture, gains


def _compose(
    source: PictureSource,
    index: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    pool: np.ndarray,
    output_size: int,
) -> LabelledImage:
    """A mosaic or a single image, warped to the output size.

    Memory: 12 * image_size**2 bytes for a moment for a mosaic that is rotated, sheared or tilted; else nothing.
    """
    size = source.image_size
    if rng.random() < config.mosaic:
        images = [index, *pool[rng.integers(len(pool), size=NUM_TILES - 1)].tolist()]
        center_xy = draw_mosaic_center(rng, size)
        matrix, scale = _draw_matrix(rng, (2 * size, 2 * size), size, config, output_size)
        if only_scales_and_shifts(matrix):
            tiles = mosaic_tiles(images, center_xy)
            return place_tiles(source.load, tiles, (2 * size, 2 * size), matrix, scale, output_size)
        window = visible_window(matrix, output_size)
        return warp(build_mosaic(source.load, images, center_xy, size, window), matrix, scale, output_size)
    picture = source.load(index)
    height, width = picture.image.shape[:2]
    matrix, scale = _draw_matrix(rng, (height, width), size, config, output_size)
    if only_scales_and_shifts(matrix):
        whole = Tile(index, (0, 0), is_left=False, is_top=False)
        return place_tiles(lambda _: picture, [whole], (width, height), matrix, scale, output_size)
    return warp(picture, matrix, scale, output_size)


def _draw_matrix(
    rng: np.random.Generator, source_hw: tuple[int, int], size: int, config: AugmentConfig, output_size: int
) -> tuple[np.ndarray, float]:
    matrix, scale = draw_affine_matrix(
        rng,
        source_hw,
        size,
        degrees=config.degrees,
        translate=config.translate,
        scale=config.scale,
        shear=config.shear,
        perspective=config.perspective,
    )
    zoom = output_size / size
    return np.diag([zoom, zoom, 1]) @ matrix, scale * zoom


def flip(picture: LabelledImage, axis: int) -> LabelledImage:
    """Mirror an image in place, and its boxes: top to bottom (axis 0) or left to right (axis 1)."""
    length = picture.image.shape[axis]
    low, high = (1, 3) if axis == 0 else (0, 2)
    boxes = picture.boxes_xyxy_px.copy()
    boxes[:, low] = length - picture.boxes_xyxy_px[:, high]
    boxes[:, high] = length - picture.boxes_xyxy_px[:, low]
    return picture._replace(image=cv2.flip(picture.image, axis, dst=picture.image), boxes_xyxy_px=boxes)
