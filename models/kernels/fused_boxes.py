"""Decodes boxes in Triton: reads each logit once and writes each box once.

The operations of PyTorch in `models.detection.boxes.decode_boxes` make about ten passes over float32 maps with the size
of the logits.

Legend: B images, A anchors, D = 4 R logits of an anchor, R bins of a distribution over distances.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ANCHORS = 128  # anchors of a program


@triton.jit
def _decode_kernel(
    logits, logits_image, logits_row, logits_anchor, points, points_axis, points_anchor, strides, boxes, num_anchors,
    NUM_BINS: tl.constexpr, PADDED_BINS: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """Decode the boxes of ``ANCHORS`` anchors of one image."""
    image = tl.cast(tl.program_id(1), tl.int64)
    anchor = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    exists = anchor < num_anchors
    bins = tl.arange(0, PADDED_BINS)[:, None]  # a power of two
    is_logit = (bins < NUM_BINS) & exists[None, :]
    stride = tl.load(strides + anchor, exists, 0.0)
    for side in tl.static_range(4):
        source = logits + image * logits_image + (side * NUM_BINS + bins) * logits_row + anchor[None, :] * logits_anchor
        logit = tl.load(source, is_logit, float("-inf")).to(tl.float32)
        logit = tl.where(exists[None, :], logit, 0.0)  # without a finite number, the maximum would give NaN
        weight = tl.exp(logit - tl.max(logit, 0)[None, :])
        distance = tl.sum(weight * bins.to(tl.float32), 0) / tl.sum(weight, 0) * stride
        center = tl.load(points + side % 2 * points_axis + anchor * points_anchor, exists, 0.0)
        place = boxes + (image * 4 + side) * num_anchors + anchor
        tl.store(place, center - distance if side < 2 else center + distance, exists)


def decode(logits_BDA: Tensor, points_2A: Tensor, strides_A: Tensor) -> Tensor:
    """Decode corner boxes, float32 (B, 4, A), in pixels.

    Args:
        logits_BDA: Logits of the distances to the sides, in half precision or float32.
        points_2A: Centers of the anchors, float32, in pixels.
        strides_A: Strides of the anchors, float32, in pixels.
    """
    batch, num_logits, num_anchors = logits_BDA.shape
    num_bins = num_logits // 4
    boxes_B4A = points_2A.new_empty(batch, 4, num_anchors)
    with torch.cuda.device_of(logits_BDA):
        _decode_kernel[triton.cdiv(num_anchors, ANCHORS), batch](
            logits_BDA, *logits_BDA.stride(), points_2A, *points_2A.stride(), strides_A, boxes_B4A, num_anchors,
            NUM_BINS=num_bins, PADDED_BINS=triton.next_power_of_2(num_bins), ANCHORS=ANCHORS,
        )  # fmt: skip
    return boxes_B4A
