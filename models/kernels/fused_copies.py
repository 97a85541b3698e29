"""Concatenation, upsampling and conversion of images in Triton: each map is read once and written once.

PyTorch's kernels take several times as long as moving the bytes requires. Its concatenation becomes a series of slow
strided copies unless all parts are contiguous. Its upsampling in channels_last computes the source of each element
separately. Its conversion of bytes to channels_last numbers takes two slow passes. The kernels here read and write maps
of any layout, and access adjacent channels together.

Legend: B images, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.fused_norm_act import NUM_WARPS, TILE_ELEMENTS, tile_channels, tile_places, tile_shape

IMAGE_PLACES = 1024  # pixels of a program


@triton.jit
def _scale_bytes_kernel(images, out, num_places, PLACES: tl.constexpr):
    """Convert ``PLACES`` pixels of one image from three planes of bytes to channels_last numbers."""
    image = tl.cast(tl.program_id(1), tl.int64)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    inside = place < num_places
    for channel in tl.static_range(3):
        value = tl.load(images + (3 * image + channel) * num_places + place, inside, 0).to(tl.float32) / 255.0
        tl.store(out + (image * num_places + place) * 3 + channel, value, inside)


def scale_bytes(images_B3HW: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert uint8 images to ``dtype`` in [0, 1], channels_last."""
    images = images_B3HW.contiguous()
    out = torch.empty_like(images, dtype=dtype, memory_format=torch.channels_last)
    num_places = images.shape[2] * images.shape[3]
    with torch.cuda.device_of(images):
        _scale_bytes_kernel[triton.cdiv(num_places, IMAGE_PLACES), len(images)](
            images, out, num_places, PLACES=IMAGE_PLACES
        )
    return out


@triton.jit
def _place_kernel(
    x, x_image, x_channel, x_row, x_column, out, out_image, out_channel, out_row, out_column,
    num_channels, width, num_places, tiles_per_image,
    SCALE: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Fill one tile of ``out`` with the values of ``x`` at the positions divided by ``SCALE``."""
    channel, in_channel = tile_channels(tl.program_id(1), num_channels, TILE_CHANNELS)
    image, place, in_image = tile_places(tl.program_id(0), num_places, tiles_per_image, TILE_PLACES)
    inside, row, column = in_channel & in_image, place // width, place % width
    source = x + image * x_image + channel * x_channel + row // SCALE * x_row + column // SCALE * x_column
    target = out + image * out_image + channel * out_channel + row * out_row + column * out_column
    tl.store(target, tl.load(source, inside), inside)


def place(x_BCHW: Tensor, out_BCHW: Tensor, scale: int = 1) -> None:
    """Copy a map to one of the same dtype and ``scale`` times the height and width, by repeating its values."""
    num_channels, (height, width) = x_BCHW.shape[1], out_BCHW.shape[2:]
    num_places = height * width
    channels, places = tile_shape(x_BCHW, num_places, TILE_ELEMENTS)
    tiles_per_image = triton.cdiv(num_places, places)
    with torch.cuda.device_of(x_BCHW):
        _place_kernel[len(x_BCHW) * tiles_per_image, triton.cdiv(num_channels, channels)](
            x_BCHW, *x_BCHW.stride(), out_BCHW, *out_BCHW.stride(), num_channels, width, num_places, tiles_per_image,
            SCALE=scale, TILE_CHANNELS=channels, TILE_PLACES=places, num_warps=NUM_WARPS,
        )  # fmt: skip


def concatenate(parts_BCHW: Sequence[Tensor]) -> Tensor:
    """``torch.cat(parts, 1)`` of maps of one dtype, in the memory format of the first."""
    first, num_channels = parts_BCHW[0], [part.shape[1] for part in parts_BCHW]
    shape = len(first), sum(num_channels), *first.shape[2:]
    out = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=memory_format_of(first))
    for part, target in zip(parts_BCHW, out.split(num_channels, 1), strict=True):
        place(part, target)
    return out


def upsample(x_BCHW: Tensor, scale: int) -> Tensor:
    """``interpolate(x, scale_factor=scale)``: every value becomes a square of ``scale`` x ``scale``."""
    batch, channels, height, width = x_BCHW.shape
    shape = batch, channels, height * scale, width * scale
    out = torch.empty(shape, dtype=x_BCHW.dtype, device=x_BCHW.device, memory_format=memory_format_of(x_BCHW))
    place(x_BCHW, out, scale)
    return out


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last if the channels of a map are adjacent in memory, else contiguous."""
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
