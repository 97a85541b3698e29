"""Check the sizes of the ``data`` section of a configuration, and name the folder of the index."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from data.loading.sampler import STRIDE_PX, image_sizes
from engine.errors import ConfigError
from models import cache_folder

SYNTHETIC = "synthetic"
MAX_MULTI_SCALE = 0.9


def index_folder() -> Path:
    """The folder in which the index of every data set is kept."""
    return cache_folder() / "index"


def check_sizes(
    batch_size: int,
    micro_batch_size: int | Literal["auto"],
    image_size: int,
    multi_scale: float = 0.0,
    stride_px: int = STRIDE_PX,
) -> None:
    """Refuse sizes with which training is impossible; ``stride_px`` is the largest stride of the network.

    Raises:
        ConfigError: With key, value, rule and remedy.
    """
    for key, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
        if value != "auto" and value < 1:
            raise ConfigError(f"data.{key}: {value}: must be at least 1")
    if micro_batch_size != "auto" and micro_batch_size > batch_size:
        raise ConfigError(
            f"data.micro_batch_size: {micro_batch_size}: is more than data.batch_size ({batch_size}), the images "
            "of a whole optimizer step. Lower it or raise data.batch_size."
        )
    check_image_size(image_size, stride_px, "data.image_size")
    if not 0 <= multi_scale <= MAX_MULTI_SCALE:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: must be a share of data.image_size from 0 to {MAX_MULTI_SCALE}."
        )
    if multi_scale and len(image_sizes(image_size, multi_scale, stride_px)) == 1:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: is less than {stride_px} pixels of data.image_size {image_size}, the "
            f"step between sizes. Give 0 or at least {math.ceil(1000 * stride_px / image_size) / 1000}."
        )


def check_image_size(image_size: int, stride_px: int, key: str) -> None:
    """Refuse a side that the network does not take, or that leaves its coarsest map a single cell.

    Raises:
        ConfigError: With key, value, rule and remedy.
    """
    least = 2 * stride_px
    if image_size < stride_px or image_size % stride_px:
        nearest = max(round(image_size / stride_px) * stride_px, least)
        raise ConfigError(f"{key}: {image_size}: must be a multiple of {stride_px}. Use {nearest}.")
    if image_size < least:
        raise ConfigError(
            f"{key}: {image_size}: leaves the deepest layers one value per channel, which BatchNorm cannot normalise. "
            f"Use at least {least}."
        )
