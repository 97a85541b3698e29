"""Random color on a GPU in one Triton kernel, which reads and writes each image once.

`data.augmentation.color.shift_hsv_on_device` is the reference, and is used without Triton. Its operations of PyTorch
make about forty passes over float32 maps, which take a few per cent of a training step and 75 bytes for each pixel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES = 1024  # pixels of a program
ROUNDER = tl.constexpr(1.5 * 2**23)
"""Adding it to a small float32 and subtracting it rounds to the nearest integer, like `torch.round`."""


@triton.jit
def _channel(OFFSET: tl.constexpr, hue, saturation, value):
    """One RGB channel of an HSV color: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative."""
    k = OFFSET + hue
    k -= 6.0 * tl.floor(k / 6.0)
    result = value - value * saturation * tl.minimum(tl.maximum(tl.minimum(k, 4.0 - k), 0.0), 1.0)
    return ((result + ROUNDER) - ROUNDER).to(tl.uint8)


@triton.jit
def _shift_kernel(images, gains, out, num_places, PLACES: tl.constexpr):
    """Change the color of ``PLACES`` pixels of one image."""
    image = tl.program_id(1)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    inside = place < num_places
    first = tl.cast(image, tl.int64) * 3 * num_places
    red = tl.load(images + first + place, inside, 0).to(tl.float32)
    green = tl.load(images + first + num_places + place, inside, 0).to(tl.float32)
    blue = tl.load(images + first + 2 * num_places + place, inside, 0).to(tl.float32)
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    # Hue in sixths of the circle: the largest channel selects the third, the other two the position in it.
    scaled = tl.maximum(chroma, 1.0)
    hue = tl.where(value == green, (blue - red) / scaled + 2.0, (red - green) / scaled + 4.0)
    hue = tl.where(value == red, (green - blue) / scaled, hue) + 6.0 * tl.load(gains + 3 * image)
    saturation = tl.minimum(chroma / tl.maximum(value, 1.0) * (1.0 + tl.load(gains + 3 * image + 1)), 1.0)
    value = tl.minimum(value * (1.0 + tl.load(gains + 3 * image + 2)), 255.0)
    tl.store(out + first + place, _channel(5.0, hue, saturation, value), inside)
    tl.store(out + first + num_places + place, _channel(3.0, hue, saturation, value), inside)
    tl.store(out + first + 2 * num_places + place, _channel(1.0, hue, saturation, value), inside)


def shift_hsv(images_B3HW: Tensor, gains_B3: Tensor) -> Tensor:
    """Shift the hue and scale saturation and value, like `data.augmentation.color.shift_hsv_on_device`.

    Args:
        images_B3HW: RGB images, uint8.
        gains_B3: Gains of hue, saturation and value of each image, float32, on the same device.

    Returns:
        New images, uint8 (B, 3, H, W).
    """
    images, gains = images_B3HW.contiguous(), gains_B3.float().contiguous()
    out = torch.empty_like(images)
    num_places = images.shape[2] * images.shape[3]
    with torch.cuda.device_of(images):
        _shift_kernel[triton.cdiv(num_places, PLACES), len(images)](images, gains, out, num_places, PLACES=PLACES)
    return out
