"""The detection loss: three un-normalised sums and their normaliser.

With the numbers of the Ultralytics recipe: every anchor pays a binary cross-entropy over the classes; an
anchor that shall predict a box also pays 1 - complete IoU and the distribution focal loss, both weighted by
its target score.

    loss = (7.5 * box + 0.5 * cls + 1.5 * dfl) / max(sum of all target scores, 1)

The sums and the normaliser are returned separately, so that the loss of several micro-batches can be divided
once, by the normaliser of all of them.

Memory. The class scores are by far the largest predictions, so the only thing of their size that is ever made
is their gradient, in their own dtype: `_ClassificationSum`. The box terms look at nothing but the candidates
of the assignment, ten a ground-truth box. Everything is computed in FP32 (FP64 for FP64 predictions) whatever
autocast says, with static shapes, and the host never waits for the device.

Shape suffixes: B images, b of a chunk, C classes, A anchors, N ground-truth boxes of the batch, P candidates,
R = NUM_BINS, D = 4 R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.detection.assigner import Assignment, Scene, assign
from models.detection.boxes import (
    NUM_BINS,
    RawPredictions,
    aligned_ciou,
    anchor_points,
    decode_boxes,
    distance_bins,
    feature_sizes,
    images_per_chunk,
)
from models.precision import autocast_disabled, working_dtype

MIN_NORMALISER = 1.0  # fewer target scores than this count as one
MAX_DISTANCE = NUM_BINS - 1 - 0.01  # strides; a target strictly between the last two bins


@dataclass(frozen=True)
class LossSums:
    """Un-normalised loss of some images: FP32 scalars (FP64 for FP64 predictions) on their device."""

    box: Tensor
    """Sum of target score * (1 - complete IoU) over the positive anchors."""
    cls: Tensor
    """Sum of the binary cross-entropy over all anchors and classes."""
    dfl: Tensor
    """Sum of target score * distribution focal loss over the positive anchors."""
    normaliser: Tensor
    """Sum of all target scores: without gradient, not clamped, 0 for images without boxes."""


@dataclass(frozen=True)
class LossGains:
    """Weights of the terms of the loss."""

    box: float = 7.5
    """Weight of the complete-IoU term."""
    cls: float = 0.5
    """Weight of the classification term."""
    dfl: float = 1.5
    """Weight of the distribution focal term."""

    def apply(self, sums: LossSums) -> Tensor:
        """The weighted sums of box, cls and dfl, float (3,), still un-normalised."""
        return torch.stack((self.box * sums.box, self.cls * sums.cls, self.dfl * sums.dfl))

    def total(self, sums: LossSums, normaliser: Tensor) -> Tensor:
        """The loss, a scalar: all terms over ``normaliser``, which may be that of more images than `sums`."""
        return self.apply(sums).sum() / normaliser.clamp(min=MIN_NORMALISER)


class DetectionLoss(nn.Module):
    """Raw predictions and ground-truth boxes to `LossSums`. Has no state.

    Args:
        strides: Pixels per cell of the head's feature maps, finest first.
        fused_kernels: As for `decode_boxes`.
    """

    def __init__(self, strides: Sequence[int], fused_kernels: bool = False) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.fused_kernels = fused_kernels

    def forward(
        self, predictions: RawPredictions, boxes_xyxy_px: Tensor, classes: Tensor, image_index: Tensor
    ) -> LossSums:
        """Un-normalised loss of a batch.

        Args:
            predictions: Raw output of the network, any float dtype: ``boxes`` (B, D, A) logits of the
                distances, ``scores`` (B, C, A) logits of the classes, and ``feats``, feature maps whose sizes
                are used.
            boxes_xyxy_px: float (N, 4), corner boxes in pixels of the network input; N may be 0. Zeros are
                padding.
            classes: int64 (N,), in [0, C).
            image_index: int64 (N,), in [0, B).

        Memory: the gradients of the predictions, 44 bytes an anchor of the batch, 13 KiB a box, and less than
            50 MiB of temporaries, whatever the batch.
        """
        logits_BDA, logits_BCA = predictions["boxes"], predictions["scores"]
        with autocast_disabled(logits_BDA.device):
            dtype = working_dtype(logits_BDA.dtype)
            boxes_N4 = boxes_xyxy_px.to(dtype)
            sizes = feature_sizes(predictions)
            points_A2, strides_A = anchor_points(sizes, self.strides, boxes_N4.device, dtype)
            scene = Scene(
                logits_BCA=logits_BCA.detach(),
                predicted_BA4=decode_boxes(predictions, self.strides, self.fused_kernels),
                points_A2=points_A2,
                boxes_N4=boxes_N4,
                classes_N=classes,
                image_index_N=image_index,
                min_side_px=float(self.strides[1]),
            )
            assignment = assign(scene)
            box, dfl = _box_sums(logits_BDA, assignment, boxes_N4, points_A2, strides_A)
            cls = _ClassificationSum.apply(logits_BCA, assignment.score_BA, assignment.class_BA)
            return LossSums(box, cls, dfl, normaliser=assignment.score_BA.sum())


def _box_sums(
    logits_BDA: Tensor, assignment: Assignment, boxes_N4: Tensor, points_A2: Tensor, strides_A: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the complete-IoU and the distribution focal loss of the candidates, in strides, not pixels."""
    image_P, anchor_P, weight_P = assignment.image_P, assignment.anchor_P, assignment.weight_P
    stride_P1 = strides_A[anchor_P, None]
    center_P2 = points_A2[anchor_P] / stride_P1
    target_P4 = boxes_N4[assignment.box_P] / stride_P1

    logits_PD = _GatherCandidates.apply(logits_BDA, image_P, anchor_P).to(boxes_N4.dtype)
    log_probability_P4R = logits_PD.unflatten(1, (4, NUM_BINS)).log_softmax(-1)
    distance_P4 = (log_probability_P4R.exp() * distance_bins(boxes_N4)).sum(-1)
    predicted_P4 = torch.cat((center_P2 - distance_P4[:, :2], center_P2 + distance_P4[:, 2:]), dim=1)
    target_distance_P4 = torch.cat((center_P2 - target_P4[:, :2], target_P4[:, 2:] - center_P2), dim=1)

    box = (weight_P * (1 - aligned_ciou(predicted_P4, target_P4))).sum()
    dfl = (weight_P * distribution_focal_loss(log_probability_P4R, target_distance_P4).mean(1)).sum()
    return box, dfl


def distribution_focal_loss(log_probability: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy of predicted distributions over distances with target distances (arXiv 2006.04388).

    A target between two bins is shared between them in proportion to its closeness.

    Args:
        log_probability: (..., R) over the bins 0, 1, ..., R - 1 strides.
        distance: (...) targets in strides, clamped to [0, `MAX_DISTANCE`].

    Returns:
        Loss (...).
    """
    distance = distance.clamp(0, MAX_DISTANCE).unsqueeze(-1)
    share = (1 - (distance_bins(log_probability) - distance).abs()).clamp(min=0)
    return -(share * log_probability).sum(-1)


class _GatherCandidates(torch.autograd.Function):
    """The distance logits (P, D) of the candidates, out of those of all anchors.

    The same as ``logits_BDA[image_P, :, anchor_P]``, whose own backward would copy the gradient of all
    anchors once more in order to bring the two indexed dimensions together.
    """

    @staticmethod
    def forward(ctx: Any, logits_BDA: Tensor, image_P: Tensor, anchor_P: Tensor) -> Tensor:
        """The logits, in their own dtype."""
        ctx.save_for_backward(image_P, anchor_P)
        ctx.shape = logits_BDA.shape
        return logits_BDA[image_P, :, anchor_P]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of all logits, in their dtype: 0 but at candidates; those of one anchor add up."""
        image_P, anchor_P = ctx.saved_tensors
        _, num_logits, num_anchors = ctx.shape
        row_PD = image_P[:, None] * num_logits + torch.arange(num_logits, device=grad_PD.device)
        index_PD = row_PD * num_anchors + anchor_P[:, None]
        grad = grad_PD.new_zeros(ctx.shape.numel())
        grad.scatter_add_(0, index_PD.flatten(), grad_PD.flatten())
        return grad.view(ctx.shape), None, None


class _ClassificationSum(torch.autograd.Function):
    """Sum of the binary cross-entropy of all class logits; targets are 0 but for one class of an anchor.

    With such targets it is ``sum softplus(logit) - sum over anchors of target score * logit of its class``:
    no dense target is needed. Kept for backward are the logits, in their own dtype, and two maps (B, A).
    Backward writes ``sigmoid(logit) - target`` into the gradient, in the logits' dtype. Both go through the
    images in chunks.
    """

    @staticmethod
    def forward(ctx: Any, logits_BCA: Tensor, score_BA: Tensor, class_BA: Tensor) -> Tensor:
        """The sum, a scalar of the dtype of ``score_BA``."""
        ctx.save_for_backward(logits_BCA, score_BA, class_BA)
        total = score_BA.new_zeros(())
        chunk = images_per_chunk(logits_BCA[0].numel())
        for logits_bCA, score_bA, class_bA in _split(chunk, logits_BCA, score_BA, class_BA):
            logits_bCA = logits_bCA.to(score_BA.dtype)
            positive_bA = logits_bCA.gather(1, class_bA[:, None])[:, 0]
            # Not in place: compiled by torch 2.11, that would make the gradient 0.
            total = total + F.softplus(logits_bCA).sum() - (positive_bA * score_bA).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the logits, in their dtype; rounded to it once, after the multiplication."""
        logits_BCA, score_BA, class_BA = ctx.saved_tensors
        grad_BCA = torch.empty_like(logits_BCA)
        chunk = images_per_chunk(logits_BCA[0].numel())
        chunks = _split(chunk, logits_BCA, score_BA, class_BA, grad_BCA)
        for logits_bCA, score_bA, class_bA, grad_bCA in chunks:
            error_bCA = logits_bCA.to(score_BA.dtype).sigmoid()
            error_bCA.scatter_add_(1, class_bA[:, None], -score_bA[:, None])
            grad_bCA.copy_(error_bCA.mul_(grad_total))
        return grad_BCA, None, None


def _split(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Go through the images of several tensors together, ``chunk`` at a time."""
    return zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
