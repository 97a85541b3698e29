"""Max-pooling with stride 1 in Triton: keeps no indices and collects each position's gradient in one pass.

With stride 1, as in SPPF, the result is as large as the map. PyTorch's kernels write 8-byte indices and take about
thirty times as long as moving the bytes of the maps requires. The forward pass here writes only the result. The
backward pass first writes one byte for each window: the position of its largest value. Then each position adds up the
gradients of the windows in which it is the largest. Of several largest values, the first in reading order counts, and
of NaN the last, as in PyTorch.

Legend: B images, C channels, H x W places.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.fused_norm_act import NUM_WARPS, TILE_ELEMENTS, tile_channels, tile_places, tile_shape

NOWHERE = tl.constexpr(255)  # no position of a window
MAX_KERNEL_SIZE = 15  # the number of a position in a window must fit in a byte


@triton.jit
def _pool_kernel(
    x, x_image, x_channel, x_row, x_column, out, out_image, out_channel, out_row, out_column,
    num_channels, height, width, tiles_per_image,
    SIZE: tl.constexpr, INDEX: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Largest value of each window or, if ``INDEX``, the position of this value, counted row by row."""
    channel, in_channel = tile_channels(tl.program_id(1), num_channels, TILE_CHANNELS)
    image, place, in_image = tile_places(tl.program_id(0), height * width, tiles_per_image, TILE_PLACES)
    exists, row, column = in_channel & in_image, place // width, place % width
    largest = tl.full((TILE_CHANNELS, TILE_PLACES), float("-inf"), tl.float32)
    position = tl.full((TILE_CHANNELS, TILE_PLACES), NOWHERE, tl.int32)
    for step in tl.static_range(SIZE * SIZE):
        y, z = row + step // SIZE - SIZE // 2, column + step % SIZE - SIZE // 2
        inside = exists & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        source = x + image * x_image + channel * x_channel + y * x_row + z * x_column
        value = tl.load(source, inside, float("-inf")).to(tl.float32)
        is_larger = inside & ((value > largest) | (value != value) | (position == NOWHERE))
        largest = tl.where(is_larger, value, largest)
        position = tl.where(is_larger, step, position)
    target = out + image * out_image + channel * out_channel + row * out_row + column * out_column
    tl.store(target, position if INDEX else largest, exists)


@triton.jit
def _collect_kernel(
    index, index_image, index_channel, index_row, index_column, grad, grad_image, grad_channel, grad_row, grad_column,
    out, out_image, out_channel, out_row, out_column, num_channels, height, width, tiles_per_image,
    SIZE: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Sum, for each position, of the gradients of the windows in which it is the largest."""
    channel, in_channel = tile_channels(tl.program_id(1), num_channels, TILE_CHANNELS)
    image, place, in_image = tile_places(tl.program_id(0), height * width, tiles_per_image, TILE_PLACES)
    exists, row, column = in_channel & in_image, place // width, place % width
    total = tl.zeros((TILE_CHANNELS, TILE_PLACES), tl.float32)
    for step in tl.static_range(SIZE * SIZE):
        # The window in which this position has the number ``step``.
        y, z = row - step // SIZE + SIZE // 2, column - step % SIZE + SIZE // 2
        inside = exists & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        source = image * index_image + channel * index_channel + y * index_row + z * index_column
        is_largest = inside & (tl.load(index + source, inside, 0).to(tl.int32) == step)
        source = image * grad_image + channel * grad_channel + y * grad_row + z * grad_column
        total += tl.load(grad + source, is_largest, 0.0).to(tl.float32)
    target = out + image * out_image + channel * out_channel + row * out_row + column * out_column
    tl.store(target, total, exists)


def max_pool(x_BCHW: Tensor, kernel_size: int, out_BCHW: Tensor | None = None) -> Tensor:
    """``F.max_pool2d(x, kernel_size, stride=1, padding=kernel_size // 2)`` for an odd size up to `MAX_KERNEL_SIZE`."""
    out = torch.empty_like(x_BCHW) if out_BCHW is None else out_BCHW
    _launch(_pool_kernel, x_BCHW, [x_BCHW, out], SIZE=kernel_size, INDEX=False)
    return out


def max_pool_backward(grad_BCHW: Tensor, x_BCHW: Tensor, kernel_size: int) -> Tensor:
    """Gradient of the input of `max_pool`; sums in float32, rounded once.

    Memory: the result, and one byte for each element.
    """
    index, out = torch.empty_like(x_BCHW, dtype=torch.uint8), torch.empty_like(x_BCHW)
    _launch(_pool_kernel, x_BCHW, [x_BCHW, index], SIZE=kernel_size, INDEX=True)
    _launch(_collect_kernel, x_BCHW, [index, grad_BCHW, out], SIZE=kernel_size)
    return out


def _launch(kernel: triton.JITFunction, like: Tensor, maps: list[Tensor], **constants: int) -> None:
    """Run a kernel for each tile of ``maps``, which all have the shape of ``like``."""
    batch, num_channels, height, width = like.shape
    channels, places = tile_shape(like, height * width, TILE_ELEMENTS)
    tiles_per_image = triton.cdiv(height * width, places)
    arguments = [value for tensor in maps for value in (tensor, *tensor.stride())]
    with torch.cuda.device_of(like):
        kernel[batch * tiles_per_image, triton.cdiv(num_channels, channels)](
            *arguments, num_channels, height, width, tiles_per_image, **constants,
            TILE_CHANNELS=channels, TILE_PLACES=places, num_warps=NUM_WARPS,
        )  # fmt: skip
