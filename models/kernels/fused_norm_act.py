"""BatchNorm and SiLU in fused Triton kernels, which read and write each map as few times as possible.

On a GPU, the time of these operations depends on how often a map passes through memory:

    =============================  =================  =====
    maps read or written           PyTorch's kernels  fused
    =============================  =================  =====
    forward, batch's statistics                    5      3
    forward, running statistics                    4      2
    output computed again                          4      2
    the same, added to a residual                  7      3
    backward, batch's statistics                  10      5
    backward, running statistics                  10      3
    =============================  =================  =====

All arithmetic is in float32, whatever the dtype of the map, and the result is rounded once. The variance comes from
Welford's recurrence in each lane of a tile, then from Chan's formula for merging samples, so it stays accurate when the
mean is large compared with the deviation. There are no atomic additions: equal inputs give equal bits.

A kernel treats a map as images x channels x places. The places must be evenly spaced: maps that are contiguous or
channels_last, and slices of the channels of such maps, satisfy this. A tile holds channels and places of one image, and
more of the dimension that is adjacent in memory.

Without a GPU, ``TRITON_INTERPRET=1`` runs the same kernels slowly on CPU tensors, as the tests do.

Legend: B images, C channels, H x W places, S splits (one program's share of the tiles).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TILE_ELEMENTS = 2048
MAX_TILE_CHANNELS = 128
NARROW_CHANNELS = 64  # up to this number, tiles of twice the size compute the output faster
NUM_WARPS = 4
NUM_STAGES = 3  # tiles that a reduction loads at the same time
NUM_PROGRAMS = 1024  # a few programs for each multiprocessor of the largest GPU


@triton.jit
def tile_channels(tile, num_channels, TILE_CHANNELS: tl.constexpr):
    """Channels of a tile, and a mask of those that exist."""
    channel = tile * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[:, None]
    return channel, channel < num_channels


@triton.jit
def tile_places(tile, num_places, tiles_per_image, TILE_PLACES: tl.constexpr):
    """Image and places of a tile, and a mask of the places that exist.

    The image is int64, because a map may have more than 2**31 elements.
    """
    place = (tile % tiles_per_image) * TILE_PLACES + tl.arange(0, TILE_PLACES)[None, :]
    return tl.cast(tile // tiles_per_image, tl.int64), place, place < num_places


@triton.jit
def _inside(in_channel, in_image, EVEN: tl.constexpr):
    """Mask of the elements that exist. In ``EVEN`` tiles all exist, so the compiler removes the mask."""
    return tl.full((1, 1), True, tl.int1) if EVEN else in_channel & in_image


@triton.jit
def _load_channels(channel, in_channel, mean, variance, weight, bias):
    """Mean, 1 / deviation, weight and bias of a tile's channels."""
    mean_C = tl.load(mean + channel, in_channel, 0.0).to(tl.float32)
    invstd_C = 1.0 / tl.sqrt(tl.load(variance + channel, in_channel, 1.0).to(tl.float32))
    weight_C = tl.load(weight + channel, in_channel, 0.0).to(tl.float32)
    bias_C = tl.load(bias + channel, in_channel, 0.0).to(tl.float32)
    return mean_C, invstd_C, weight_C, bias_C


@triton.jit
def _before_act(grad, normalised, SILU: tl.constexpr):
    """Gradient of BatchNorm's output, from the gradient of the activation."""
    grad = grad.to(tl.float32)
    if SILU:
        sigmoid = tl.sigmoid(normalised)
        grad = grad * sigmoid * (1.0 + normalised * (1.0 - sigmoid))
    return grad


@triton.jit
def _moments_kernel(
    x, x_image, x_channel, x_place, num_channels, num_places, tiles_per_image, num_tiles, split_tiles,
    count_CS, mean_CS, squares_CS,
    NUM_STAGES: tl.constexpr, EVEN: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Number of values, mean and sum of squared deviations of each channel in one split."""
    channel, in_channel = tile_channels(tl.program_id(0), num_channels, TILE_CHANNELS)
    first = tl.program_id(1) * split_tiles
    lane_count = tl.zeros((1, TILE_PLACES), tl.float32)
    lane_mean = tl.zeros((TILE_CHANNELS, TILE_PLACES), tl.float32)
    squares = tl.zeros((TILE_CHANNELS, TILE_PLACES), tl.float32)
    for tile in tl.range(first, tl.minimum(first + split_tiles, num_tiles), num_stages=NUM_STAGES):
        image, place, in_image = tile_places(tile, num_places, tiles_per_image, TILE_PLACES)
        inside = _inside(in_channel, in_image, EVEN)
        value = tl.load(x + image * x_image + channel * x_channel + place * x_place, inside, 0.0).to(tl.float32)
        lane_count += in_image.to(tl.float32)
        deviation = tl.where(inside, value - lane_mean, 0.0)
        share = 1.0 / tl.maximum(lane_count, 1.0)  # one division serves all channels of a place
        lane_mean += deviation * share
        squares += deviation * (deviation * (1.0 - share))
    count = tl.sum(lane_count)
    mean = tl.sum(lane_mean * lane_count, 1)[:, None] / count
    squares = tl.sum(squares + lane_count * (lane_mean - mean) * (lane_mean - mean), 1)[:, None]
    target = channel * tl.num_programs(1) + tl.program_id(1)
    tl.store(count_CS + target, tl.zeros_like(mean) + count, in_channel)
    tl.store(mean_CS + target, mean, in_channel)
    tl.store(squares_CS + target, squares, in_channel)


@triton.jit
def _merge_kernel(
    count_CS, mean_CS, squares_CS, num_splits, eps, momentum,
    mean, variance, running_mean, running_var, num_batches, UPDATE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the statistics of one channel over all splits; if ``UPDATE``, update the running statistics."""
    channel = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    inside = split < num_splits
    source = channel * num_splits + split
    counts = tl.load(count_CS + source, inside, 0.0)
    means = tl.load(mean_CS + source, inside, 0.0)
    squares = tl.load(squares_CS + source, inside, 0.0)
    count = tl.maximum(tl.sum(counts, 0), 1.0)
    total = tl.sum(means * counts, 0) / count
    squares = tl.sum(squares + counts * (means - total) * (means - total), 0)
    tl.store(mean + channel, total)
    tl.store(variance + channel, squares / count + eps)
    if UPDATE:
        old_mean = tl.load(running_mean + channel).to(tl.float32)
        old_var = tl.load(running_var + channel).to(tl.float32)
        unbiased = squares / tl.maximum(count - 1.0, 1.0)
        tl.store(running_mean + channel, old_mean + momentum * (total - old_mean))
        tl.store(running_var + channel, old_var + momentum * (unbiased - old_var))
        if channel == 0:
            tl.store(num_batches, tl.load(num_batches) + 1)


@triton.jit
def _apply_kernel(
    x, x_image, x_channel, x_place, num_channels, num_places, tiles_per_image,
    residual, residual_image, residual_channel, residual_place, out, out_image, out_channel, out_place,
    mean, variance, weight, bias,
    SILU: tl.constexpr, ADD: tl.constexpr, EVEN: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Normalize and activate one tile; if ``ADD``, add the residual."""
    channel, in_channel = tile_channels(tl.program_id(1), num_channels, TILE_CHANNELS)
    image, place, in_image = tile_places(tl.program_id(0), num_places, tiles_per_image, TILE_PLACES)
    inside = _inside(in_channel, in_image, EVEN)
    value = tl.load(x + image * x_image + channel * x_channel + place * x_place, inside, 0.0)
    mean_C, invstd_C, weight_C, bias_C = _load_channels(channel, in_channel, mean, variance, weight, bias)
    result = (value.to(tl.float32) - mean_C) * invstd_C * weight_C + bias_C
    if SILU:
        result = result * tl.sigmoid(result)
    if ADD:
        source = residual + image * residual_image + channel * residual_channel + place * residual_place
        result = result.to(x.dtype.element_ty).to(tl.float32)  # round as a store and a load would
        result += tl.load(source, inside, 0.0).to(tl.float32)
    tl.store(out + image * out_image + channel * out_channel + place * out_place, result, inside)


@triton.jit
def _reduce_kernel(
    x, x_image, x_channel, x_place, num_channels, num_places, tiles_per_image, num_tiles, split_tiles,
    grad, grad_image, grad_channel, grad_place, out, out_image, out_channel, out_place,
    mean, variance, weight, bias, sums_2CS,
    SILU: tl.constexpr, FROZEN: tl.constexpr, NUM_STAGES: tl.constexpr,
    EVEN: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias over one split; if ``FROZEN``, also the gradient of the map, ``out``."""
    channel, in_channel = tile_channels(tl.program_id(0), num_channels, TILE_CHANNELS)
    mean_C, invstd_C, weight_C, bias_C = _load_channels(channel, in_channel, mean, variance, weight, bias)
    first = tl.program_id(1) * split_tiles
    weight_sum = tl.zeros((TILE_CHANNELS, TILE_PLACES), tl.float32)
    bias_sum = tl.zeros((TILE_CHANNELS, TILE_PLACES), tl.float32)
    for tile in tl.range(first, tl.minimum(first + split_tiles, num_tiles), num_stages=NUM_STAGES):
        image, place, in_image = tile_places(tile, num_places, tiles_per_image, TILE_PLACES)
        inside = _inside(in_channel, in_image, EVEN)
        value = tl.load(x + image * x_image + channel * x_channel + place * x_place, inside, 0.0)
        slope = tl.load(grad + image * grad_image + channel * grad_channel + place * grad_place, inside, 0.0)
        standard = (value.to(tl.float32) - mean_C) * invstd_C
        slope = _before_act(slope, standard * weight_C + bias_C, SILU)
        weight_sum += slope * standard  # the slope is 0 where there is no element
        bias_sum += slope
        if FROZEN:
            target = image * out_image + channel * out_channel + place * out_place
            tl.store(out + target, slope * invstd_C * weight_C, inside)
    num_splits = tl.num_programs(1)
    target = sums_2CS + channel * num_splits + tl.program_id(1)
    tl.store(target, tl.sum(weight_sum, 1)[:, None], in_channel)
    tl.store(target + num_channels * num_splits, tl.sum(bias_sum, 1)[:, None], in_channel)


@triton.jit
def _sum_kernel(sums_CS, num_splits, total, SPLITS: tl.constexpr):
    """Add up one channel over all splits."""
    split = tl.arange(0, SPLITS)
    values = tl.load(sums_CS + tl.program_id(0) * num_splits + split, split < num_splits, 0.0)
    tl.store(total + tl.program_id(0), tl.sum(values, 0))


@triton.jit
def _grad_kernel(
    x, x_image, x_channel, x_place, num_channels, num_places, tiles_per_image, num_values,
    grad, grad_image, grad_channel, grad_place, out, out_image, out_channel, out_place,
    mean, variance, weight, bias, weight_sum, bias_sum,
    SILU: tl.constexpr, EVEN: tl.constexpr, TILE_CHANNELS: tl.constexpr, TILE_PLACES: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of the map, including the part through the batch's statistics."""
    channel, in_channel = tile_channels(tl.program_id(1), num_channels, TILE_CHANNELS)
    image, place, in_image = tile_places(tl.program_id(0), num_places, tiles_per_image, TILE_PLACES)
    inside = _inside(in_channel, in_image, EVEN)
    value = tl.load(x + image * x_image + channel * x_channel + place * x_place, inside, 0.0)
    slope = tl.load(grad + image * grad_image + channel * grad_channel + place * grad_place, inside, 0.0)
    mean_C, invstd_C, weight_C, bias_C = _load_channels(channel, in_channel, mean, variance, weight, bias)
    weight_mean = tl.load(weight_sum + channel, in_channel, 0.0) / num_values
    bias_mean = tl.load(bias_sum + channel, in_channel, 0.0) / num_values
    standard = (value.to(tl.float32) - mean_C) * invstd_C
    slope = _before_act(slope, standard * weight_C + bias_C, SILU)
    result = (slope - bias_mean - standard * weight_mean) * (invstd_C * weight_C)
    tl.store(out + image * out_image + channel * out_channel + place * out_place, result, inside)


def normalise_by_batch(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running: tuple[Tensor, Tensor, Tensor] | None,
    momentum: float,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `norm_act.normalise_by_batch`, for a map in one of `DTYPES`."""
    mean_C, variance_C = batch_statistics(x_BCHW, running, momentum, eps)
    return normalise_activate(x_BCHW, weight_C, bias_C, mean_C, variance_C, silu), mean_C, variance_C


def batch_statistics(
    x_BCHW: Tensor, running: tuple[Tensor, Tensor, Tensor] | None, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Like `norm_act.batch_statistics`, for a map in one of `DTYPES`."""
    x, num_channels = _evenly_spaced(x_BCHW), x_BCHW.shape[1]
    sizes, tile, (num_tiles, channel_tiles) = _tiling(x, TILE_ELEMENTS)
    split_tiles, num_splits = _split(num_tiles, channel_tiles)
    moments_3CS = x.new_empty(3, num_channels, num_splits, dtype=torch.float32)
    mean_C, variance_C = moments_3CS.new_empty(2, num_channels)
    with torch.cuda.device_of(x):
        _moments_kernel[channel_tiles, num_splits](
            x, *_strides(x), *sizes, num_tiles, split_tiles, *moments_3CS, NUM_STAGES=NUM_STAGES, **tile
        )
        _merge_kernel[(num_channels,)](
            *moments_3CS, num_splits, eps, momentum, mean_C, variance_C, *(running or (mean_C,) * 3),
            UPDATE=running is not None, SPLITS=triton.next_power_of_2(num_splits),
        )  # fmt: skip
    return mean_C, variance_C


def normalise_activate(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    silu: bool,
    residual_BCHW: Tensor | None = None,
    out_BCHW: Tensor | None = None,
) -> Tensor:
    """Like `norm_act.normalise_activate`, for maps in one of `DTYPES`; ``out`` must be evenly spaced."""
    x = _evenly_spaced(x_BCHW)
    residual = x if residual_BCHW is None else _evenly_spaced(residual_BCHW)
    out = torch.empty_like(x) if out_BCHW is None else out_BCHW
    sizes, tile, grid = _tiling(x, 2 * TILE_ELEMENTS if x.shape[1] <= NARROW_CHANNELS else TILE_ELEMENTS)
    with torch.cuda.device_of(x):
        _apply_kernel[grid](
            x, *_strides(x), *sizes, residual, *_strides(residual), out, *_strides(out),
            mean_C, variance_C, weight_C, bias_C, SILU=silu, ADD=residual_BCHW is not None, **tile,
        )  # fmt: skip
    return out


def backward(
    grad_BCHW: Tensor,
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_C: Tensor,
    variance_C: Tensor,
    silu: bool,
    by_batch: bool,
    out_BCHW: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `norm_act.backward`, for maps in one of `DTYPES`; ``out`` must be evenly spaced."""
    x, grad = _evenly_spaced(x_BCHW), _evenly_spaced(grad_BCHW)
    out = torch.empty_like(x) if out_BCHW is None else out_BCHW
    sizes, tile, (num_tiles, channel_tiles) = _tiling(x, TILE_ELEMENTS)
    split_tiles, num_splits = _split(num_tiles, channel_tiles)
    maps = grad, *_strides(grad), out, *_strides(out), mean_C, variance_C, weight_C, bias_C
    num_channels = x.shape[1]
    sums_2CS = x.new_empty(2, num_channels, num_splits, dtype=torch.float32)
    total_2C = sums_2CS.new_empty(2, num_channels)
    grad_weight_C, grad_bias_C = total_2C
    with torch.cuda.device_of(x):
        _reduce_kernel[channel_tiles, num_splits](
            x, *_strides(x), *sizes, num_tiles, split_tiles, *maps, sums_2CS,
            SILU=silu, FROZEN=not by_batch, NUM_STAGES=NUM_STAGES, **tile,
        )  # fmt: skip
        _sum_kernel[(2 * num_channels,)](sums_2CS, num_splits, total_2C, SPLITS=triton.next_power_of_2(num_splits))
        if by_batch:
            num_values = x.numel() // num_channels
            _grad_kernel[num_tiles, channel_tiles](
                x, *_strides(x), *sizes, num_values, *maps, grad_weight_C, grad_bias_C, SILU=silu, **tile
            )
    return out, grad_weight_C.to(weight_C.dtype), grad_bias_C.to(bias_C.dtype)


def _evenly_spaced(x_BCHW: Tensor) -> Tensor:
    """Return the map, or a contiguous copy if its places are not evenly spaced."""
    height, width = x_BCHW.shape[2:]
    is_even = height == 1 or width == 1 or x_BCHW.stride(2) == width * x_BCHW.stride(3)
    return x_BCHW if is_even else x_BCHW.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of images, channels and places, in elements."""
    return x.stride(0), x.stride(1), x.stride(3 if x.shape[3] > 1 else 2)


def tile_shape(x_BCHW: Tensor, num_places: int, tile_elements: int) -> tuple[int, int]:
    """Channels and places of a tile, both powers of 2, with more of the dimension that is adjacent in memory."""
    most_channels, most_places = map(triton.next_power_of_2, (x_BCHW.shape[1], num_places))
    if x_BCHW.stride(1) == 1:
        channels = min(most_channels, MAX_TILE_CHANNELS)
        return channels, min(most_places, tile_elements // channels)
    places = min(most_places, tile_elements)
    return min(most_channels, tile_elements // places), places


def _tiling(x: Tensor, tile_elements: int) -> tuple[tuple[int, int, int], dict[str, int], tuple[int, int]]:
    """Sizes of the map (channels, places, tiles of an image), constants of a tile, and the grid of tiles."""
    num_channels, num_places = x.shape[1], x.shape[2] * x.shape[3]
    channels, places = tile_shape(x, num_places, tile_elements)
    tiles_per_image = triton.cdiv(num_places, places)
    grid = len(x) * tiles_per_image, triton.cdiv(num_channels, channels)
    is_even = num_channels % channels == 0 and num_places % places == 0
    tile = {"EVEN": is_even, "TILE_CHANNELS": channels, "TILE_PLACES": places, "num_warps": NUM_WARPS}
    return (num_channels, num_places, tiles_per_image), tile, grid


def _split(num_tiles: int, channel_tiles: int) -> tuple[int, int]:
    """Tiles of a split and number of splits, for about `NUM_PROGRAMS` programs; no split is empty."""
    split_tiles = triton.cdiv(num_tiles * channel_tiles, NUM_PROGRAMS)
    return split_tiles, triton.cdiv(num_tiles, split_tiles)
