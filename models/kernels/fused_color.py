"""Random color on a GPU in one Triton kernel: a picture is read once and written once.

`data.augmentation.color.shift_hsv_on_device` does the same with PyTorch's operations, some forty passes over float32
maps: a few per cent of a training step, and 75 bytes a pixel. It is the reference, and what is used without Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES = 1024
ROUNDER = tl.constexpr(1.5 * 2**23)
"""Added to a small float32 and taken off again, it leaves the nearest integer, as `torch.round` does."""


@triton.jit
def _channel(OFFSET: tl.constexpr, hue, saturation, value):
    """A channel of a color; https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative."""
    k = OFFSET + hue
    k -= 6.0 * tl.floor(k / 6.0)
    result = value - value * saturation * tl.minimum(tl.maximum(tl.minimum(k, 4.0 - k), 0.0), 1.0)
    return ((result + ROUNDER) - ROUNDER).to(tl.uint8)


@triton.jit
def _shift_kernel(images, gains, out, num_places, PLACES: tl.constexpr):
    """Some places of one image."""
    image = tl.program_id(1)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    inside = place < num_places
    first = tl.cast(image, tl.int64) * 3 * num_places
    red = tl.load(images + first + place, inside, 0).to(tl.float32)
    green = tl.load(images + first + num_places + place, inside, 0).to(tl.float32)
    blue = tl.load(images + first + 2 * num_places + place, inside, 0).to(tl.float32)
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    # hue in sixths of the circle: which channel is the largest, and where between its neighbors
    scaled = tl.maximum(chroma, 1.0)
    hue = tl.where(value == green, (blue - red) / scaled + 2.0, (red - green) / scaled + 4.0)
    hue = tl.where(value == red, (green - blue) / scaled, hue) + 6.0 * tl.load(gains + 3 * image)
    saturation = tl.minimum(chroma / tl.maximum(value, 1.0) * (1.0 + tl.load(gains + 3 * image + 1)), 1.0)
    value = tl.minimum(value * (1.0 + tl.load(gains + 3 * image + 2)), 255.0)
    tl.store(out + first + place, _channel(5.0, hue, saturation, value), inside)
    tl.store(out + first + num_places + place, _channel(3.0, hue, saturation, value), inside)
    tl.store(out + first + 2 * num_places + place, _channel(1.0, hue, saturation, value), inside)


def shift_hsv(images_B3HW: Tensor, gains_B3: Tensor) -> Tensor:
    """Turn the hue and scale saturation and value, as `data.augmentation.color.shift_hsv_on_device` does.

    Args:
        images_B3HW: uint8, RGB.
        gains_B3: float32, on the same device: the gains of each image.

    Returns:
        New images.
    """
    images, gains = images_B3HW.contiguous(), gains_B3.float().contiguous()
    out = torch.empty_like(images)
    num_places = images.shape[2] * images.shape[3]
    with torch.cuda.device_of(images):
        _shift_kernel[triton.cdiv(num_places, PLACES), len(images)](images, gains, out, num_places, PLACES=PLACES)
    return out
