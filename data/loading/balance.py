"""How often an epoch shows each image, for data sets with rare classes.

Repeat-factor sampling (Gupta, Dollar, Girshick: LVIS, 2019, section 4.3): a class that occurs in a share ``f`` of the
images has the factor ``max(1, sqrt(threshold / f))``. An image has the largest factor of its classes. The user can
also give factors class by class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data.errors import DataError
from data.indexing.index import ImageIndex

MAX_FACTOR = 1000


@dataclass(frozen=True)
class BalanceConfig:
    """How often an epoch shows each image; once by default."""

    repeat_threshold: float = 0.0
    """Repeat the images of each class that occurs in a smaller share of the images than this, by the rule of LVIS. Use
    0.001 for a thousand classes and 0.1 to 0.3 for ten; 0 is off. Takes 8 bytes of RAM an image. Epochs become longer;
    a line says by how much."""
    class_weights: dict[str, float] = field(default_factory=dict)
    """How often an epoch shows the images of each class, on average: 3.0 is three times, 0.5 is every other epoch. An
    image has the largest number of its classes. Classes without a number count 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.repeat_threshold <= 1:
            raise DataError(
                f"data.balance.repeat_threshold: {self.repeat_threshold}: not a share of the images. Give 0 to 1."
            )
        for name, weight in self.class_weights.items():
            if not 0 < weight <= MAX_FACTOR:
                raise DataError(
                    f"data.balance.class_weights.{name}: {weight}: out of range. Give above 0 to {MAX_FACTOR}."
                )


def check_weighted_classes(config: BalanceConfig, names: tuple[str, ...]) -> None:
    """Refuse a weight for a class that the data set does not have.

    Raises:
        DataError: For the first such class; names the known classes.
    """
    for name in config.class_weights:
        if name not in names:
            raise DataError(f"data.balance.class_weights: {name!r}: no such class. The classes are {', '.join(names)}.")


def image_repeats(index: ImageIndex, names: tuple[str, ...], config: BalanceConfig) -> np.ndarray | None:
    """How often an epoch shows each image, on average.

    Returns:
        float64 (I,), above 0; images without objects have 1. None if every image is shown once.

    Raises:
        DataError: If a weighted class is not among the names.
    """
    if not config.repeat_threshold and not config.class_weights:
        return None
    factors = class_repeats(index, len(names), config.repeat_threshold)
    check_weighted_classes(config, names)
    for name, weight in config.class_weights.items():
        factors[names.index(name)] = weight
    counts = np.diff(index.box_offsets)
    repeats = np.ones(len(index))
    starts = index.box_offsets[:-1][counts > 0]
    if len(starts):
        repeats[counts > 0] = np.maximum.reduceat(factors[index.classes], starts)
    return repeats


def class_repeats(index: ImageIndex, num_classes: int, threshold: float) -> np.ndarray:
    """The repeat factor of each class by the rule of LVIS, float64 (C,)."""
    shares = index.images_per_class(num_classes).clip(1) / max(len(index), 1)  # no division by 0 for unused classes
    return np.sqrt(np.maximum(1.0, threshold / shares))
