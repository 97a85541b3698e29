"""The detection loss: three unnormalized sums and their normaliser.

It uses the numbers of the Ultralytics recipe. Every anchor contributes a binary cross-entropy over the classes. An
anchor that shall predict a box also contributes 1 - complete IoU and the distribution focal loss, both weighted by its
target score.

    loss = (7.5 * box + 0.5 * cls + 1.5 * dfl) / max(sum of all target scores, 1)

The sums and the normaliser are returned separately, so that the loss of several micro-batches can be divided once by
the normaliser of all of them.

Memory: the class scores are by far the largest predictions. Only their gradient has the same size, in their own dtype:
see `_ClassificationSum`. The box terms read only the candidates of the assignment, ten for each ground-truth box.

All computations use FP32 (FP64 for FP64 predictions), whatever autocast says, and static shapes. The host never waits
for the device.

Shape suffixes: B images, b images of a chunk, C classes, A anchors, N ground-truth boxes of the batch, P candidates,
R bins of a distribution over distances, D = 4 R.
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
    RawPredictions,
    aligned_ciou,
    anchor_points,
    decode_boxes,
    distance_bins,
    feature_sizes,
    images_per_chunk,
)
from models.precision import autocast_disabled, working_dtype

MIN_NORMALISER = 1.0  # a smaller sum of target scores counts as this
LAST_BIN_GAP = 0.01  # least distance of a target from the last bin, in strides


@dataclass(frozen=True)
class LossSums:
    """Unnormalized loss of some images: FP32 scalars (FP64 for FP64 predictions) on the device of the predictions."""

    box: Tensor
    """Sum of target score * (1 - complete IoU) over the positive anchors."""
    cls: Tensor
    """Sum of the binary cross-entropy over all anchors and classes."""
    dfl: Tensor
    """Sum of target score * distribution focal loss over the positive anchors."""
    normaliser: Tensor
    """Sum of all target scores, without gradient; not clamped, so 0 for images without boxes."""


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
        """Weighted sums of box, cls and dfl, (3,), unnormalized."""
        return torch.stack((self.box * sums.box, self.cls * sums.cls, self.dfl * sums.dfl))

    def total(self, sums: LossSums, normaliser: Tensor) -> Tensor:
        """Scalar loss: the sum of all terms divided by ``normaliser``, which may count more images than ``sums``."""
        return self.apply(sums).sum() / normaliser.clamp(min=MIN_NORMALISER)


class DetectionLoss(nn.Module):
    """Computes `LossSums` from raw predictions and ground-truth boxes; has no state.

    Args:
        strides: Pixels per cell of the head's feature maps, finest first.
        fused_kernels: Decode boxes in one Triton kernel, where Triton works.
    """

    def __init__(self, strides: Sequence[int], fused_kernels: bool = False) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.fused_kernels = fused_kernels

    def forward(
        self, predictions: RawPredictions, boxes_xyxy_px: Tensor, classes: Tensor, image_index: Tensor
    ) -> LossSums:
        """Compute the unnormalized loss of a batch.

        Args:
            predictions: Output of the network in training mode, any float dtype.
            boxes_xyxy_px: Corner boxes, float (N, 4), in pixels of the network input; N may be 0, zeros are padding.
            classes: Class of each box, int64 (N,), in [0, C).
            image_index: Image of each box, int64 (N,), in [0, B).

        Memory: the gradients of the predictions, 44 bytes for each anchor of the batch, 13 KiB for each box, and less
            than 50 MiB of temporaries, whatever the batch.
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
                min_side_px=float(self.strides[:2][-1]),
            )
            assignment = assign(scene)
            box, dfl = _box_sums(logits_BDA, assignment, boxes_N4, points_A2, strides_A)
            cls = _ClassificationSum.apply(logits_BCA, assignment.score_BA, assignment.class_BA)
            return LossSums(box, cls, dfl, normaliser=assignment.score_BA.sum())


def _box_sums(
    logits_BDA: Tensor, assignment: Assignment, boxes_N4: Tensor, points_A2: Tensor, strides_A: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the complete-IoU loss and of the distribution focal loss of the candidates, computed in strides."""
    image_P, anchor_P, weight_P = assignment.image_P, assignment.anchor_P, assignment.weight_P
    stride_P1 = strides_A[anchor_P, None]
    center_P2 = points_A2[anchor_P] / stride_P1
    target_P4 = boxes_N4[assignment.box_P] / stride_P1

    logits_PD = _GatherCandidates.apply(logits_BDA, image_P, anchor_P).to(boxes_N4.dtype)
    num_bins = logits_PD.shape[1] // 4
    log_probability_P4R = logits_PD.unflatten(1, (4, num_bins)).log_softmax(-1)
    distance_P4 = (log_probability_P4R.exp() * distance_bins(num_bins, boxes_N4)).sum(-1)
    predicted_P4 = torch.cat((center_P2 - distance_P4[:, :2], center_P2 + distance_P4[:, 2:]), dim=1)
    target_distance_P4 = torch.cat((center_P2 - target_P4[:, :2], target_P4[:, 2:] - center_P2), dim=1)

    box = (weight_P * (1 - aligned_ciou(predicted_P4, target_P4))).sum()
    dfl = (weight_P * distribution_focal_loss(log_probability_P4R, target_distance_P4).mean(1)).sum()
    return box, dfl


def distribution_focal_loss(log_probability: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy of predicted distributions over distances with target distances (arXiv 2006.04388).

    A target between two bins counts for both, with weights that fall linearly with the distance from the bin.

    Args:
        log_probability: Log-probabilities (..., R) of the bins 0, 1, ..., R - 1 strides.
        distance: Targets (...) in strides; clamped to [0, R - 1 - `LAST_BIN_GAP`].

    Returns:
        Loss of each distribution, (...).
    """
    num_bins = log_probability.shape[-1]
    distance = distance.clamp(0, num_bins - 1 - LAST_BIN_GAP).unsqueeze(-1)
    share = (1 - (distance_bins(num_bins, log_probability) - distance).abs()).clamp(min=0)
    return -(share * log_probability).sum(-1)


class _GatherCandidates(torch.autograd.Function):
    """Selects the distance logits (P, D) of the candidates: ``logits_BDA[image_P, :, anchor_P]``.

    The backward of PyTorch's indexing would copy the gradient of all anchors to bring the indexed dimensions together.
    """

    @staticmethod
    def forward(ctx: Any, logits_BDA: Tensor, image_P: Tensor, anchor_P: Tensor) -> Tensor:
        """Return the logits in their own dtype."""
        ctx.save_for_backward(image_P, anchor_P)
        ctx.shape = logits_BDA.shape
        return logits_BDA[image_P, :, anchor_P]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of all logits in their dtype; adds up the gradients of candidates of one anchor."""
        image_P, anchor_P = ctx.saved_tensors
        _, num_logits, num_anchors = ctx.shape
        row_PD = image_P[:, None] * num_logits + torch.arange(num_logits, device=grad_PD.device)
        index_PD = row_PD * num_anchors + anchor_P[:, None]
        grad = grad_PD.new_zeros(ctx.shape.numel())
        grad.scatter_add_(0, index_PD.flatten(), grad_PD.flatten())
        return grad.view(ctx.shape), None, None


class _ClassificationSum(torch.autograd.Function):
    """Sum of the binary cross-entropy of all class logits, where each anchor has one class with a target above 0.

    With such targets the sum is ``sum softplus(logit) - sum over anchors of target score * logit of its class``, which
    needs no dense targets. Backward reads the logits in their own dtype and two maps (B, A), and writes
    ``sigmoid(logit) - target`` into the gradient. Both passes process the images in chunks.
    """

    @staticmethod
    def forward(ctx: Any, logits_BCA: Tensor, score_BA: Tensor, class_BA: Tensor) -> Tensor:
        """Return the sum, a scalar with the dtype of ``score_BA``."""
        ctx.save_for_backward(logits_BCA, score_BA, class_BA)
        total = score_BA.new_zeros(())
        chunk = images_per_chunk(logits_BCA[0].numel())
        for logits_bCA, score_bA, class_bA in _split(chunk, logits_BCA, score_BA, class_BA):
            logits_bCA = logits_bCA.to(score_BA.dtype)
            positive_bA = logits_bCA.gather(1, class_bA[:, None])[:, 0]
            # An in-place addition, compiled by torch 2.11, makes the gradient 0.
            total = total + F.softplus(logits_bCA).sum() - (positive_bA * score_bA).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits in their dtype, rounded once, after the multiplication."""
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
    """Iterate over chunks of ``chunk`` images of several tensors together."""
    return zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
