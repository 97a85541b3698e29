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
MIN_IMAGE_SIZE_PX = 2 * STRIDE_PX


def index_folder() -> Path:
    """The folder in which the index of every data set is kept."""
    return cache_folder() / "index"


def check_sizes(
    batch_size: int, micro_batch_size: int | Literal["auto"], image_size: int, multi_scale: float = 0.0
) -> None:
    """Refuse sizes with which training is impossible.

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
    if image_size < STRIDE_PX or image_size % STRIDE_PX:
        nearest = max(round(image_size / STRIDE_PX), 2) * STRIDE_PX
        raise ConfigError(f"data.image_size: {image_size}: must be a multiple of {STRIDE_PX}. Use {nearest}.")
    if image_size < MIN_IMAGE_SIZE_PX:
        raise ConfigError(
            f"data.image_size: {image_size}: leaves the deepest layers one value per channel, which BatchNorm cannot "
            f"normalise. Use at least {MIN_IMAGE_SIZE_PX}."
        )
    if not 0 <= multi_scale <= MAX_MULTI_SCALE:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: must be a share of data.image_size from 0 to {MAX_MULTI_SCALE}."
        )
    if multi_scale and len(image_sizes(image_size, multi_scale)) == 1:
        raise ConfigError(
            f"data.multi_scale: {multi_scale}: is less than {STRIDE_PX} pixels of data.image_size {image_size}, the "
            f"step between sizes. Give 0 or at least {math.ceil(1000 * STRIDE_PX / image_size) / 1000}."
        )
