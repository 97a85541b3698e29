"""Random color: turns the hue and scales saturation and value, on the host in whole numbers, on the device in float32.

It takes three quarters of the time of OpenCV's conversion to HSV and back, and is closer to exact, because hue is not
rounded to two degrees. A pixel is represented by its largest channel (the value) and the distances of all channels
below it; the largest distance is the chroma.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import stringzilla
import torch
from torch import Tensor

STRIP_BYTES = 600 * 2**10  # fits into a core's cache, and the allocator keeps it
IMAGES_AT_ONCE = 4  # limits the memory on the device
LEVELS = np.arange(256.0)


def shift_hsv(image: np.ndarray, gains_3: np.ndarray) -> np.ndarray:
    """Turn the hue and scale saturation and value.

    Args:
        image: uint8 (height, width, 3), RGB.
        gains_3: The part of the circle that hue is turned by; saturation and value are scaled by one plus their gain.

    Returns:
        A new image, within two levels of exact at the recipe's gains, four at any. Gray stays gray.
    """
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    shift_hsv_to_planes(image, gains_3, planes)
    return cv2.merge(list(planes))


def shift_hsv_to_planes(image: np.ndarray, gains_3: np.ndarray, planes_3HW: np.ndarray) -> None:
    """As `shift_hsv`, but writes to ``planes_3HW``, uint8, which may be part of a batch.

    Memory: about four times `STRIP_BYTES`.
    """
    height, width = image.shape[:2]
    num_rows = min(max(STRIP_BYTES // (3 * width), 1), height)
    tables, buffers = _Tables.of(*gains_3.tolist()), np.empty((11, num_rows, width), np.uint8)
    for start in range(0, height, num_rows):
        strip = image[start : start + num_rows]
        _shift_strip(strip, tables, buffers[:, : len(strip)], planes_3HW[:, start : start + num_rows])


class _Tables(NamedTuple):
    """What the gains of an image amount to; tables are uint8 (256,)."""

    num_thirds: int
    """Thirds of the circle that hue is turned by, which exchange channels."""
    num_turns: int
    """Number of turns for the rest, each of a twelfth of the circle at most."""
    is_forward: bool
    """Turn from red to green; False turns from red to blue."""
    step: np.ndarray
    """From chroma to the levels by which one turn changes a channel."""
    value: np.ndarray
    """From value to the new value."""
    factor: np.ndarray
    """From value to the factor of the distances, in multiples of ``unit``."""
    unit: float
    saturation: float
    """Factor of the saturation, before its limit."""

    @classmethod
    def of(cls, hue_gain: float, saturation_gain: float, value_gain: float) -> _Tables:
        sixths = 6 * hue_gain
        num_thirds = round(sixths / 2)
        rest = sixths - 2 * num_thirds
        num_turns = math.ceil(2 * abs(rest))
        value = np.minimum(LEVELS * (1 + value_gain), 255)
        factor = (1 + saturation_gain) * value / LEVELS.clip(1)
        unit = max((1 + saturation_gain) * (1 + value_gain), 1e-3) / 255
        step = LEVELS * abs(rest) / max(num_turns, 1)
        step_table, value_table, factor_table = np.stack([step, value, factor / unit]).round().clip(0, 255).astype("u1")
        is_forward, saturation = rest > 0, 1 + saturation_gain
        return cls(num_thirds, num_turns, is_forward, step_table, value_table, factor_table, unit, saturation)


def _shift_strip(strip: np.ndarray, tables: _Tables, buffers: np.ndarray, planes_3HW: np.ndarray) -> None:
    distances, turned, (value, chroma, factor, scratch, spare) = list(buffers[:3]), list(buffers[3:6]), buffers[6:]
    cv2.split(strip, distances)
    cv2.max(cv2.max(distances[0], distances[1], dst=value), distances[2], dst=value)
    for plane in distances:
        cv2.subtract(value, plane, dst=plane)
    cv2.max(cv2.max(distances[0], distances[1], dst=chroma), distances[2], dst=chroma)
    step, low = _look_up(tables.step, chroma, factor), cv2.subtract(chroma, factor, dst=scratch)
    for _ in range(tables.num_turns):
        _turn_hue(distances, (step, low, chroma), tables.is_forward, turned, spare)
        distances, turned = turned, distances
    _look_up(tables.factor, value, factor)
    _look_up(tables.value, value, value)
    if tables.saturation > 1:  # distances may not exceed the value
        cv2.min(factor, cv2.divide(value, chroma, dst=scratch, scale=1 / tables.unit), dst=factor)
    for channel, plane in enumerate(distances):
        cv2.multiply(plane, factor, dst=plane, scale=tables.unit)
        cv2.subtract(value, plane, dst=planes_3HW[(channel + tables.num_thirds) % 3])


def _look_up(table: np.ndarray, plane: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Map bytes through a table at some 50 GB/s; `cv2.LUT` needs 30 times as long."""
    if result is not plane:
        np.copyto(result, plane)
    stringzilla.translate(result.reshape(-1).data, table.data, inplace=True)
    return result


def _turn_hue(
    distances: list[np.ndarray],
    levels: tuple[np.ndarray, np.ndarray, np.ndarray],
    is_forward: bool,
    turned: list[np.ndarray],
    scratch: np.ndarray,
) -> None:
    """Turn hue by up to a twelfth of the circle; ``levels`` are ``step``, chroma less ``step``, and chroma.

    Around the circle one channel at a time rises or falls, by one chroma per sixth. The next channel ahead decides
    whether a channel moves: it is less than a step above the bottom where this channel falls, and less than a step
    below the top where it rises. `cv2.subtract` stops at 0.
    """
    step, low, chroma = levels
    for channel, (distance, result) in enumerate(zip(distances, turned, strict=True)):
        ahead = distances[(channel + (1 if is_forward else 2)) % 3]
        cv2.subtract(distance, cv2.subtract(ahead, low, dst=scratch), dst=result)
        cv2.add(result, cv2.subtract(step, ahead, dst=scratch), dst=result)
        cv2.min(result, chroma, dst=result)


def shift_hsv_on_device(images_B3HW: Tensor, gains_B3: Tensor) -> Tensor:
    """As `shift_hsv` for many images, in float32 on their device; results differ by two levels at the recipe's gains.

    Args:
        images_B3HW: uint8, RGB.
        gains_B3: float32 on the same device, the gains of each image.

    Returns:
        New images: a window that is split again after running out of memory needs the old ones.

    Memory: the result, and for a moment some 75 bytes a pixel of `IMAGES_AT_ONCE` images.
    """
    results_B3HW = torch.empty_like(images_B3HW)
    parts = (tensor.split(IMAGES_AT_ONCE) for tensor in (images_B3HW, gains_B3, results_B3HW))
    for images, gains, results in zip(*parts, strict=True):
        hue_gain, saturation_gain, value_gain = gains.float()[:, :, None, None, None].unbind(1)
        rgb = images.float()
        value = rgb.amax(dim=1, keepdim=True)
        chroma = value - rgb.amin(dim=1, keepdim=True)
        red, green, blue = rgb.split(1, dim=1)
        # hue in sixths of the circle: which channel is the largest, and where between its neighbors
        scaled = chroma.clamp(min=1)
        hue = torch.where(value == blue, (red - green) / scaled + 4, (green - blue) / scaled)
        hue = torch.where(value == green, (blue - red) / scaled + 2, hue)
        hue = torch.where(value == red, (green - blue) / scaled, hue) + 6 * hue_gain
        saturation = (chroma / value.clamp(min=1) * (1 + saturation_gain)).clamp(max=1)
        value = (value * (1 + value_gain)).clamp(max=255)
        # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
        offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
        k = (offsets + hue) % 6
        results.copy_((value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)).round_())
    return results_B3HW
