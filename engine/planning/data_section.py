"""What the ``data`` section of a configuration may ask for, and where the index of its data set is kept."""

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
    """Where what a scan has found of a data set is kept."""
    return cache_folder() / "index"


def check_sizes(
    batch_size: int,
    micro_batch_size: int | Literal["auto"],
    image_size: int,
    multi_scale: float = 0.0,
    stride_px: int = STRIDE_PX,
) -> None:
    """Refuse sizes that cannot be trained with; ``stride_px`` is the network's largest stride.

    Raises:
        ConfigError: Naming the key, the value, the rule and the remedy.
    """
    for key, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
        if value != "auto" and value < 1:
            raise ConfigError(f"data.{key}: {value}: must be at least 1")
    if micro_batch_size != "auto" and micro_batch_size > batch_size:
        raise ConfigError(
            f"data.micro_batch_size: {micro_batch_size}: is more than data.batch_size ({batch_size}), the images "
            "of a whole optimizer step: lower it or raise data.batch_size"
        )
    check_image_size(image_size, stride_px, "data.image_size")
    if not 0 <= multi_scale <= MAX_MULTI_SCALE:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: give a part of data.image_size from 0 to {MAX_MULTI_SCALE}"
        )
    if multi_scale and len(image_sizes(image_size, multi_scale, stride_px)) == 1:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: is less than {stride_px} pixels of data.image_size {image_size}, and "
            f"sizes go in steps of {stride_px}: give 0 or at least {math.ceil(1000 * stride_px / image_size) / 1000}"
        )


def check_image_size(image_size: int, stride_px: int, key: str) -> None:
    """Refuse a side that the network does not take, or of which its coarsest map keeps a single cell.

    Raises:
        ConfigError: Naming the key, the value, the rule and the remedy.
    """
    least = 2 * stride_px
    if image_size < stride_px or image_size % stride_px:
        nearest = max(round(image_size / stride_px) * stride_px, least)
        raise ConfigError(f"{key}: {image_size}: must be a multiple of {stride_px}: use {nearest}")
    if image_size < least:
        raise ConfigError(
            f"{key}: {image_size}: images must have at least {least} px: of one with less, the deepest layers keep a "
            "single value per channel, which BatchNorm cannot normalise"
        )
