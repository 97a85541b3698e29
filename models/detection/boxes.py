"""Boxes: the anchor grid, decoding of raw predictions, and overlap.

The head predicts a box as four distances from the center of a grid cell (the anchor) to the left, top, right and bottom
side. Each distance is a distribution over R distances of 0, 1, ..., R - 1 strides. A coordinate is the sum of a
large number (the position of the anchor) and a small one (the distance), so 16 bits are not enough: bf16 rounds
positions beyond 512 px to 4 px. All computations here therefore use FP32, whatever the dtype of the predictions and
autocast. FP64 predictions stay FP64, for tests of exactness.

Boxes are corner boxes (left, top, right, bottom) with the origin at the top left corner of the network input.

Shape suffixes: B images, b images of a chunk, A anchors of all strides, H and W cells of a feature map, N boxes, M
other boxes, R bins of a distribution over distances (``reg_max`` of the head), D = 4 R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from models.kernels.triton_support import fused_kernels_work
from models.precision import autocast_disabled, working_dtype

CHUNK_ELEMENTS = 2**21  # elements processed together: 8 MiB for each FP32 temporary
IOU_EPS = 1e-7  # as in the reference; keeps divisions finite for boxes without area


class RawPredictions(TypedDict):
    """What the network returns in training mode, in any float dtype."""

    boxes: Tensor
    """Logits (B, D, A) of the distances to the sides, the A anchors map after map."""
    scores: Tensor
    """Class logits (B, C, A)."""
    feats: list[Tensor]
    """The head's feature maps, one for each level, (B, channels, H, W). Only their sizes are used."""


def images_per_chunk(elements_per_image: int) -> int:
    """Number of images of which a temporary has at most `CHUNK_ELEMENTS`, but at least 1."""
    return max(1, CHUNK_ELEMENTS // elements_per_image)


def feature_sizes(predictions: RawPredictions) -> list[tuple[int, int]]:
    """Height and width of each feature map, in cells."""
    return [(feature_map.shape[-2], feature_map.shape[-1]) for feature_map in predictions["feats"]]


def anchor_points(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Centers and strides of all grid cells.

    Args:
        sizes: Height and width of each feature map, in cells.
        strides: Pixels per cell of each feature map.
        device: Device of the result.
        dtype: FP32 or FP64; 16 bits cannot represent the centers in a large image.

    Returns:
        ``points_A2``, (x, y) in pixels, and ``strides_A``, in pixels; map after map, each row by row.
    """
    points, cell_sizes = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        x_W = (torch.arange(width, device=device, dtype=dtype) + 0.5) * stride
        y_H = (torch.arange(height, device=device, dtype=dtype) + 0.5) * stride
        y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
        points.append(torch.stack((x_HW.flatten(), y_HW.flatten()), dim=1))
        cell_sizes.append(torch.full((height * width,), float(stride), device=device, dtype=dtype))
    return torch.cat(points), torch.cat(cell_sizes)


def distance_bins(num_bins: int, like: Tensor) -> Tensor:
    """Distances of the bins, (R,): 0, 1, ..., ``num_bins`` - 1 strides, with the dtype and device of ``like``."""
    return torch.arange(num_bins, dtype=like.dtype, device=like.device)


@torch.no_grad()
def decode_boxes(predictions: RawPredictions, strides: Sequence[int], fused_kernels: bool = False) -> Tensor:
    """Decode boxes from raw predictions, without gradients.

    The distance to a side is the mean of its predicted distribution (Generalized Focal Loss, arXiv 2006.04388).

    Args:
        predictions: Raw predictions, of which ``boxes`` and ``feats`` are used.
        strides: Pixels per cell of each feature map.
        fused_kernels: Decode in one Triton kernel, where Triton works.

    Returns:
        Corner boxes (B, A, 4) in pixels of the network input, FP32 (FP64 for FP64 predictions). They are a view of
        (B, 4, A).

    Memory: the result, 16 bytes for each anchor, and three temporaries of `CHUNK_ELEMENTS`; with Triton none of these.
    """
    logits_BDA = predictions["boxes"]
    dtype = working_dtype(logits_BDA.dtype)
    points_A2, strides_A = anchor_points(feature_sizes(predictions), strides, logits_BDA.device, dtype)
    points_2A = points_A2.T
    if fused_kernels and fused_kernels_work(logits_BDA) and dtype == torch.float32:
        from models.kernels import fused_boxes  # imports Triton

        return fused_boxes.decode(logits_BDA, points_2A, strides_A).transpose(1, 2)
    num_bins = logits_BDA.shape[1] // 4
    bins_R1 = distance_bins(num_bins, points_A2)[:, None]
    boxes_B4A = points_A2.new_empty(len(logits_BDA), 4, len(points_A2))
    chunk = images_per_chunk(logits_BDA[0].numel())
    with autocast_disabled(logits_BDA.device):
        for logits_bDA, boxes_b4A in zip(logits_BDA.split(chunk), boxes_B4A.split(chunk), strict=True):
            probability_b4RA = logits_bDA.to(dtype).unflatten(1, (4, num_bins)).softmax(2)
            distances_b4A = (probability_b4RA * bins_R1).sum(2) * strides_A
            boxes_b4A[:, :2] = points_2A - distances_b4A[:, :2]
            boxes_b4A[:, 2:] = points_2A + distances_b4A[:, 2:]
    return boxes_B4A.transpose(1, 2)


def aligned_ciou(boxes_N4: Tensor, others_N4: Tensor) -> Tensor:
    """Complete IoU of each box with the other box in the same row; differentiable.

    Args:
        boxes_N4: Corner boxes, FP32 or FP64.
        others_N4: The other boxes, in the same unit.

    Returns:
        ``ciou_N``, at most 1; negative for boxes far apart.

    Raises:
        ValueError: If the shapes differ: broadcasting would compare all boxes with all others.
    """
    if boxes_N4.shape != others_N4.shape:
        shapes = f"{tuple(boxes_N4.shape)} and {tuple(others_N4.shape)}"
        raise ValueError(f"aligned_ciou: shapes {shapes} must be equal; pairwise_ciou compares all with all")
    return _complete_iou(boxes_N4.unbind(-1), others_N4.unbind(-1))


@torch.no_grad()
def pairwise_ciou(boxes_N4: Tensor, others_NM4: Tensor) -> Tensor:
    """Complete IoU of each of N boxes with each of the M others in its own row, without gradients.

    Args:
        boxes_N4: Corner boxes, FP32 or FP64.
        others_NM4: The M other boxes of each row, in the same unit.

    Returns:
        ``ciou_NM``.

    Memory: about ten times the result.
    """
    return _complete_iou(boxes_N4[:, None].unbind(-1), others_NM4.unbind(-1))


def _complete_iou(boxes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Complete IoU (arXiv 1911.08287) of broadcastable coordinates (left, top, right, bottom).

    Complete IoU is IoU minus two penalties: the squared distance of the centers, in units of the diagonal of the
    smallest box around both, and the difference of the aspect ratios. No gradient flows through the weight of the
    second. The epsilons are added where the reference adds them: to heights, not to widths.
    """
    left, top, right, bottom = boxes
    other_left, other_top, other_right, other_bottom = others
    width, height = right - left, bottom - top + IOU_EPS
    other_width, other_height = other_right - other_left, other_bottom - other_top + IOU_EPS

    shared_width = (right.minimum(other_right) - left.maximum(other_left)).clamp(min=0)
    shared_height = (bottom.minimum(other_bottom) - top.maximum(other_top)).clamp(min=0)
    intersection = shared_width * shared_height
    iou = intersection / (width * height + other_width * other_height - intersection + IOU_EPS)

    hull_width = right.maximum(other_right) - left.minimum(other_left)
    hull_height = bottom.maximum(other_bottom) - top.minimum(other_top)
    shift_x = (other_left + other_right - left - right) / 2
    shift_y = (other_top + other_bottom - top - bottom) / 2
    offset = (shift_x.square() + shift_y.square()) / (hull_width.square() + hull_height.square() + IOU_EPS)

    angle = torch.atan(other_width / other_height) - torch.atan(width / height)
    shape = (2 / math.pi * angle).square()
    with torch.no_grad():
        shape_weight = shape / (1 - iou + shape + IOU_EPS)
    return iou - (offset + shape * shape_weight)
