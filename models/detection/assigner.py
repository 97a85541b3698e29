"""The task-aligned assigner: chooses the anchors that shall predict each ground-truth box, and their target scores.

It follows TOOD (arXiv 2108.07755) with the numbers of the Ultralytics recipe:

1. An anchor is a candidate of a box if its center lies inside the box. Sides shorter than the second stride (of a
   head with one level: the only one) count as that long, so that a box between the centers of cells finds candidates.
2. The alignment of an anchor with a box is ``class score ** 0.5 * overlap ** 6``. The overlap is the complete IoU of
   the anchor's predicted box with the box, or 0 if negative. Each box picks the `TOP_K` anchors of highest alignment.
3. An anchor that several boxes picked is assigned to the box of its image that it overlaps most. This can be a box that
   did not pick the anchor, because the anchor was not among its ten best.
4. The target score of an anchor for the class of its box is its alignment, scaled so that the best anchor of a box gets
   the best overlap of the box.

Memory does not depend on how the boxes are spread over the images. The boxes come in one flat list, which is processed
in chunks of rows; a row is one box with all anchors of its image. No tensor has the shape images x most crowded image x
anchors, or images x anchors x classes. Only anchors that a box picked can become positive, so steps 3 and 4 process the
N * TOP_K picks. This shape is static: a pick that is not valid gets weight 0. The host never waits for the device.

`torch.topk` decides between anchors of equal alignment at the edge of the ten best, as in the reference. This happens
with alignment 0, where a box has fewer than ten overlapping anchors. The target score of such a pick is 0, but the pick
counts in step 3.

A box whose coordinates add up to 0 or less is padding and is ignored.

Shape suffixes: B images, C classes, A anchors, N ground-truth boxes of the batch, n boxes of a chunk, K = min(TOP_K, A)
picks of a box, P = N K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.detection.boxes import aligned_ciou, pairwise_ciou

TOP_K = 10
SCORE_POWER = 0.5
OVERLAP_POWER = 6.0
INSIDE_EPS_PX = 1e-9
ALIGNMENT_EPS = 1e-9
CHUNK_PAIRS = 2**19  # pairs of box and anchor processed together: 2 MiB for each FP32 temporary


@dataclass(frozen=True)
class Assignment:
    """Targets of the anchors: dense for the class scores, a list of candidates for the boxes.

    An anchor has one candidate for each box that picked it. The weights of these add up to its target score.
    """

    score_BA: Tensor
    """Target score of each anchor for its class, in [0, 1]; 0 for background."""
    class_BA: Tensor
    """Target class of each anchor, int64; 0 for background."""
    image_P: Tensor
    """Image of each candidate, int64."""
    anchor_P: Tensor
    """Anchor of each candidate, int64."""
    box_P: Tensor
    """Index of the ground-truth box that the candidate shall predict, int64 in [0, N)."""
    weight_P: Tensor
    """Weight of the candidate in the box losses; 0 for picks that are not valid."""


class Scene(NamedTuple):
    """Predictions and ground-truth boxes to match."""

    logits_BCA: Tensor
    """Class logits, any float dtype."""
    predicted_BA4: Tensor
    """Predicted corner boxes, pixels, FP32 or FP64. All computations use this dtype."""
    points_A2: Tensor
    """Centers of the anchors' cells, (x, y) in pixels."""
    boxes_N4: Tensor
    """Ground-truth corner boxes, pixels, in the dtype of the predicted boxes."""
    classes_N: Tensor
    """Class of each box, int64."""
    image_index_N: Tensor
    """Image of each box, int64."""
    min_side_px: float
    """Shortest length of a box's side in step 1, in pixels."""


class Picks(NamedTuple):
    """Result of steps 1 and 2."""

    anchor_NK: Tensor
    """Anchors that each box picked, int64."""
    valid_NK: Tensor
    """Whether the picked anchor lies inside its box, bool. A box with fewer than ten candidates picks others too."""
    leader_BA: Tensor
    """Best overlap of each anchor with a box of its image, and the box, as an int64 key of `_overlap_keys`."""


@torch.no_grad()
def assign(scene: Scene) -> Assignment:
    """Match ground-truth boxes with anchors, without gradients and without waiting for the device.

    Memory: about 20 temporaries of `CHUNK_PAIRS`, 28 bytes for each anchor of the batch, and 2 KiB for each box.
    """
    picks = _pick_anchors(scene)
    image_P = scene.image_index_N[:, None].expand_as(picks.anchor_NK).flatten()
    anchor_P, valid_P = picks.anchor_NK.flatten(), picks.valid_NK.flatten()
    cell_P = image_P * len(scene.points_A2) + anchor_P  # index into a flattened (B, A)
    num_picks_P = _count_picks(cell_P, valid_P, picks.leader_BA.numel())
    box_P = _owners(picks, cell_P, num_picks_P)
    score_P = _target_scores(scene, image_P, anchor_P, box_P) * valid_P
    shape_BA = picks.leader_BA.shape
    return Assignment(
        score_BA=_group_max(score_P, cell_P, shape_BA.numel()).view(shape_BA),
        class_BA=_group_max(scene.classes_N[box_P] * valid_P, cell_P, shape_BA.numel()).view(shape_BA),
        image_P=image_P,
        anchor_P=anchor_P,
        box_P=box_P,
        weight_P=score_P / num_picks_P,
    )


def _pick_anchors(scene: Scene) -> Picks:
    """Do steps 1 and 2 in chunks of boxes."""
    num_boxes, (num_images, num_anchors, _) = len(scene.boxes_N4), scene.predicted_BA4.shape
    leader_BA = scene.classes_N.new_zeros(num_images, num_anchors)
    anchor_NK = scene.classes_N.new_empty(num_boxes, min(TOP_K, num_anchors))
    valid_NK = torch.empty_like(anchor_NK, dtype=torch.bool)
    chunk_size = max(1, CHUNK_PAIRS // num_anchors)
    for start in range(0, num_boxes, chunk_size):
        rows = slice(start, start + chunk_size)
        inside_nA, overlap_nA, alignment_nA = _align_rows(scene, rows)
        anchor_NK[rows] = alignment_nA.topk(anchor_NK.shape[1], dim=1).indices
        valid_NK[rows] = inside_nA.gather(1, anchor_NK[rows])
        keys_nA = _overlap_keys(overlap_nA, start, num_boxes)
        leader_BA.scatter_reduce_(0, scene.image_index_N[rows, None].expand_as(keys_nA), keys_nA, "amax")
    return Picks(anchor_NK, valid_NK, leader_BA)


def _align_rows(scene: Scene, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return inside, overlap and alignment, each (n, A), of the boxes of a chunk and the anchors of their images."""
    boxes_n4, image_n = scene.boxes_N4[rows], scene.image_index_N[rows]
    inside_nA = _inside(boxes_n4[:, None], scene.points_A2, scene.min_side_px)
    predicted_nA4 = scene.predicted_BA4.transpose(1, 2).index_select(0, image_n).transpose(1, 2)
    overlap_nA = pairwise_ciou(boxes_n4, predicted_nA4).clamp_(min=0).masked_fill_(~inside_nA, 0)
    logits_nA = scene.logits_BCA[image_n, scene.classes_N[rows]]
    return inside_nA, overlap_nA, _alignment(logits_nA, overlap_nA)


def _align_candidates(scene: Scene, image_P: Tensor, anchor_P: Tensor, box_P: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap and alignment of each candidate with its box, each (P,); 0 if the anchor is not inside."""
    boxes_P4 = scene.boxes_N4[box_P]
    inside_P = _inside(boxes_P4, scene.points_A2[anchor_P], scene.min_side_px)
    ciou_P = aligned_ciou(boxes_P4, scene.predicted_BA4[image_P, anchor_P])
    overlap_P = ciou_P.clamp_(min=0).masked_fill_(~inside_P, 0)
    logits_P = scene.logits_BCA[image_P, scene.classes_N[box_P], anchor_P]
    return overlap_P, _alignment(logits_P, overlap_P)


def _inside(boxes: Tensor, points: Tensor, min_side_px: float) -> Tensor:
    """Whether each point (..., 2) lies strictly inside the stretched box (..., 4); other dimensions broadcast."""
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = (boxes[..., 2:] - boxes[..., :2]).clamp(min=min_side_px) / 2
    (left, top), (right, bottom) = (center - half).unbind(-1), (center + half).unbind(-1)
    x, y = points.unbind(-1)
    inside = (x - left > INSIDE_EPS_PX) & (right - x > INSIDE_EPS_PX)
    inside = inside & (y - top > INSIDE_EPS_PX) & (bottom - y > INSIDE_EPS_PX)
    return inside & (boxes.sum(-1) > 0)


def _alignment(logits: Tensor, overlap: Tensor) -> Tensor:
    """Alignment of step 2, from the logit for the box's class and the overlap with the box."""
    return logits.to(overlap.dtype).sigmoid().pow(SCORE_POWER) * overlap.pow(OVERLAP_POWER)


def _overlap_keys(overlap_nA: Tensor, first_row: int, num_boxes: int) -> Tensor:
    """Encode overlap and box in int64 keys (n, A), so that the largest key has the largest overlap.

    The upper half is the bits of the FP32 overlap, which have the order of the floats because none is negative. The
    lower half is ``num_boxes - row``: of equal overlaps, the earlier box has the larger key. `_owners` decodes the box.
    """
    row_n1 = torch.arange(first_row, first_row + len(overlap_nA), device=overlap_nA.device)[:, None]
    return (overlap_nA.float().view(torch.int32).long() << 32).add_(num_boxes - row_n1)


def _count_picks(cell_P: Tensor, valid_P: Tensor, num_cells: int) -> Tensor:
    """Number of boxes that picked each candidate's anchor, int64 (P,), at least 1 because it is a divisor."""
    count = cell_P.new_zeros(num_cells).scatter_add_(0, cell_P, valid_P.long())
    return count[cell_P].clamp_(min=1)


def _owners(picks: Picks, cell_P: Tensor, num_picks_P: Tensor) -> Tensor:
    """Do step 3: return the box that each candidate's anchor shall predict, int64 (P,)."""
    num_boxes = len(picks.anchor_NK)
    picker_NK = torch.arange(num_boxes, device=cell_P.device)[:, None].expand_as(picks.anchor_NK)
    leader_P = num_boxes - (picks.leader_BA.flatten()[cell_P] & 0xFFFFFFFF)
    leader_P = leader_P.clamp(0, num_boxes - 1)  # keys of NaN predictions decode to invalid indices
    return torch.where(num_picks_P > 1, leader_P, picker_NK.flatten())


def _target_scores(scene: Scene, image_P: Tensor, anchor_P: Tensor, box_P: Tensor) -> Tensor:
    """Do step 4: return the alignment of each candidate with its box, scaled to the box's best overlap, (P,)."""
    overlap_P, alignment_P = _align_candidates(scene, image_P, anchor_P, box_P)
    best_overlap_N = _group_max(overlap_P, box_P, len(scene.boxes_N4))
    best_alignment_N = _group_max(alignment_P, box_P, len(scene.boxes_N4))
    return alignment_P * best_overlap_N[box_P] / (best_alignment_N[box_P] + ALIGNMENT_EPS)


def _group_max(values_P: Tensor, group_P: Tensor, num_groups: int) -> Tensor:
    """Largest value of each group, 0 for an empty group; requires values of at least 0."""
    return values_P.new_zeros(num_groups).scatter_reduce_(0, group_P, values_P, "amax")
