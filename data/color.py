"""Random colour: hue, saturation and value, each through a table of 256 entries, or on the device.

On the host it is half of the time that a picture takes; a GPU does it beside.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import stringzilla
import torch
from torch import Tensor

HUE_STEPS = 180  # of OpenCV's 8-bit hue, two degrees each
STRIP_BYTES = 600 * 2**10  # small enough for the allocator to keep, and for a cache close to the core
IMAGES_AT_ONCE = 4  # on the device: what limits the memory


def shift_hsv(image: np.ndarray, gains_3: np.ndarray) -> np.ndarray:
    """Turn the hue and scale saturation and value.

    Args:
        image: uint8 (height, width, 3), RGB.
        gains_3: Hue is turned by this part of the circle; saturation and value are scaled by one plus this.

    Returns:
        A new image. Grey stays grey whatever the saturation gain.
    """
    result = np.empty_like(image)
    for rows, strip in _shifted_strips(image, gains_3):
        result[rows] = strip
    return result


def shift_hsv_to_planes(image: np.ndarray, gains_3: np.ndarray, planes_3HW: np.ndarray) -> None:
    """`shift_hsv` with its result written to ``planes_3HW``, uint8, where a batch keeps it."""
    for rows, strip in _shifted_strips(image, gains_3):
        cv2.split(strip, list(planes_3HW[:, rows]))


def _shifted_strips(image: np.ndarray, gains_3: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The changed image in strips of rows small enough to stay in a core's cache; each is only valid until the next."""
    levels = np.arange(256, dtype=np.float64)
    hue = (levels + gains_3[0] * HUE_STEPS) % HUE_STEPS
    saturation, value = (levels * (1 + gain) for gain in gains_3[1:])
    tables = np.stack([hue, saturation, value]).clip(0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    num_rows = min(max(STRIP_BYTES // (3 * width), 1), height)
    hsv_buffer, plane_buffer = np.empty((num_rows, width, 3), np.uint8), np.empty((3, num_rows, width), np.uint8)
    for start in range(0, height, num_rows):
        rows = slice(start, min(start + num_rows, height))
        hsv = cv2.cvtColor(image[rows], cv2.COLOR_RGB2HSV, dst=hsv_buffer[: rows.stop - start])
        planes = list(plane_buffer[:, : rows.stop - start])
        cv2.split(hsv, planes)
        for plane, table in zip(planes, tables, strict=True):
            # byte tables at some 50 GB/s where the processor can; cv2.LUT needs 30 times as long
            stringzilla.translate(memoryview(plane.reshape(-1)), memoryview(table), inplace=True)
        yield rows, cv2.cvtColor(cv2.merge(planes, dst=hsv), cv2.COLOR_HSV2RGB, dst=hsv)


def shift_hsv_on_device(images_B3HW: Tensor, gains_B3: Tensor) -> Tensor:
    """`shift_hsv` for many images, with torch on their own device.

    It computes in float32 where `shift_hsv` has 8 bits for hue, saturation and value, and cuts off rather than rounds:
    results differ by a few levels, and the changes are as large.

    Args:
        images_B3HW: uint8, RGB.
        gains_B3: float32, on the same device: the gains of each image, as in `shift_hsv`.

    Returns:
        New images; a window that is split again after running out of memory is still as it was.

    Memory: the result; and some 75 bytes a pixel of `IMAGES_AT_ONCE` images, for a moment.
    """
    results_B3HW = torch.empty_like(images_B3HW)
    parts = (tensor.split(IMAGES_AT_ONCE) for tensor in (images_B3HW, gains_B3, results_B3HW))
    for images, gains, results in zip(*parts, strict=True):
        hue_gain, saturation_gain, value_gain = gains.float()[:, :, None, None, None].unbind(1)
        rgb = images.float()
        value = rgb.amax(dim=1, keepdim=True)
        chroma = value - rgb.amin(dim=1, keepdim=True)
        red, green, blue = rgb.split(1, dim=1)
        # hue in sixths of the circle: which channel is the largest, and where between its neighbours
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
