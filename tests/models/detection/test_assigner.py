"""The assigner: like the Ultralytics one on random scenes; and on scenes small enough to work out by hand."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from ultralytics.utils.tal import TaskAlignedAssigner

from models.detection import assigner as assigner_module
from models.detection.assigner import TOP_K, Assignment, Scene, assign
from models.detection.boxes import aligned_ciou, anchor_points

STRIDES = (8, 16, 32)
NOWHERE = (-200.0, -200.0, -199.0, -199.0)  # a predicted box that overlaps nothing


def random_scene(counts: list[int], num_classes: int, size: tuple[int, int], seed: int) -> Scene:
    """Random predictions round their anchors; random boxes of all sizes, an image's second a duplicate."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    points, strides = anchor_points([(height // s, width // s) for s in STRIDES], STRIDES, "cpu")
    num_images, num_boxes, extent = len(counts), sum(counts), torch.tensor([width, height])
    reach = torch.rand(num_images, len(points), 4, generator=generator) * 5 * strides[:, None]
    centers = torch.rand(num_boxes, 2, generator=generator) * extent
    sides = torch.rand(num_boxes, 2, generator=generator) ** 2 * extent * 0.6 + 0.5
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1).clamp(min=0)
    first = 0
    for count in counts:
        if count >= 2:
            boxes[first + 1] = boxes[first]
        first += count
    return Scene(
        logits_BCA=torch.randn(num_images, num_classes, len(points), generator=generator) * 2 - 2,
        predicted_BA4=torch.cat([points - reach[..., :2], points + reach[..., 2:]], 2),
        points_A2=points,
        boxes_N4=boxes,
        classes_N=torch.randint(num_classes, (num_boxes,), generator=generator),
        image_index_N=torch.arange(num_images).repeat_interleave(torch.tensor(counts)),
        min_side_px=16.0,
    )


def small_scene(boxes: list[tuple[float, ...]], predicted: dict[tuple[float, float], tuple[float, ...]]) -> Scene:
    """One class and one 64 x 64 image, whose anchors at the given points predict boxes; all others none.

    All class scores are 1/4, so an anchor's alignment is half the sixth power of its overlap.
    """
    points, _ = anchor_points([(64 // s, 64 // s) for s in STRIDES], STRIDES, "cpu")
    predicted_BA4 = torch.tensor(NOWHERE).repeat(1, len(points), 1)
    for point, box in predicted.items():
        predicted_BA4[0, anchor_at(points, point)] = torch.tensor(box)
    return Scene(
        logits_BCA=torch.full((1, 1, len(points)), 0.25).logit(),
        predicted_BA4=predicted_BA4,
        points_A2=points,
        boxes_N4=torch.tensor(boxes).view(-1, 4),
        classes_N=torch.zeros(len(boxes), dtype=torch.int64),
        image_index_N=torch.zeros(len(boxes), dtype=torch.int64),
        min_side_px=16.0,
    )


def anchor_at(points_A2: Tensor, point: tuple[float, float]) -> int:
    """Index of the anchor of the finest stride at a point."""
    (index,) = (points_A2 == torch.tensor(point)).all(1).nonzero()[:, 0].tolist()
    return index


def owners(assignment: Assignment) -> dict[int, int]:
    """Anchor to box, for the positive candidates of the first image."""
    positive = (assignment.weight_P > 0) & (assignment.image_P == 0)
    anchors, boxes = assignment.anchor_P[positive].tolist(), assignment.box_P[positive].tolist()
    return dict(zip(anchors, boxes, strict=True))


def ultralytics_assignment(scene: Scene) -> tuple[Tensor, Tensor]:
    """Dense target scores (B, C, A) and target boxes (B, A, 4) of the reference."""
    num_images, num_classes, _ = scene.logits_BCA.shape
    counts = scene.image_index_N.bincount(minlength=num_images).tolist()
    labels, boxes = (
        torch.nn.utils.rnn.pad_sequence(list(flat.split(counts)), batch_first=True)
        for flat in (scene.classes_N[:, None].float(), scene.boxes_N4)
    )
    reference = TaskAlignedAssigner(TOP_K, num_classes, alpha=0.5, beta=6.0, stride=list(STRIDES))
    _, target_boxes, target_scores, _, _ = reference(
        scene.logits_BCA.transpose(1, 2).sigmoid(),
        scene.predicted_BA4.contiguous(),
        scene.points_A2,
        labels,
        boxes,
        boxes.sum(2, keepdim=True).gt(0).float(),
    )
    return target_scores.transpose(1, 2), target_boxes


@pytest.mark.parity
@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 7, 40]), min_size=1, max_size=3),
    num_classes=st.sampled_from([1, 3, 80]),
    size=st.sampled_from([(64, 64), (96, 160), (256, 128)]),
    seed=st.integers(0, 2**32),
)
def test_assign__equal_to_ultralytics(counts: list[int], num_classes: int, size: tuple[int, int], seed: int) -> None:
    """Same targets everywhere. Ties at alignment 0 are broken alike, by `torch.topk`."""
    scene = random_scene(counts, num_classes, size, seed)
    assignment = assign(scene)
    expected_scores, expected_boxes = ultralytics_assignment(scene)
    scores = torch.zeros_like(scene.logits_BCA)
    scores.scatter_(1, assignment.class_BA[:, None], assignment.score_BA[:, None])
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-8)
    positive = assignment.weight_P > 0
    image, anchor = assignment.image_P[positive], assignment.anchor_P[positive]
    assert torch.equal(scene.boxes_N4[assignment.box_P[positive]], expected_boxes[image, anchor])


@pytest.mark.parametrize("seed", range(5))
def test_assign__weights_of_an_anchor_add_up_to_its_score(seed: int) -> None:
    scene = random_scene([40, 0, 7], 3, (64, 96), seed)
    assignment = assign(scene)
    weights = torch.zeros_like(assignment.score_BA)
    weights.index_put_((assignment.image_P, assignment.anchor_P), assignment.weight_P, accumulate=True)
    torch.testing.assert_close(weights, assignment.score_BA, rtol=1e-6, atol=0)
    contested = (assignment.weight_P > 0).sum() > (assignment.score_BA > 0).sum()
    assert contested, "no anchor was picked twice: the scene tests nothing"


def test_assign__chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = random_scene([40, 0, 13], 3, (64, 96), seed=0)
    whole = assign(scene)
    monkeypatch.setattr(assigner_module, "CHUNK_PAIRS", 3 * len(scene.points_A2))
    chunked = assign(scene)
    for field in fields(Assignment):
        assert torch.equal(getattr(whole, field.name), getattr(chunked, field.name)), field.name


def test_assign__target_scores_by_hand() -> None:
    """Two anchors predict parts of a box: the better one is to score its overlap, the other is scaled alike.

    Alignments are o ** 6 / 2, so the targets are best and best * (other / best) ** 6.
    """
    box, part, smaller_part = (8.0, 8.0, 48.0, 48.0), (8.0, 8.0, 48.0, 44.0), (8.0, 8.0, 48.0, 32.0)
    scene = small_scene([box], {(20.0, 20.0): part, (28.0, 20.0): smaller_part})
    assignment = assign(scene)
    better, worse = anchor_at(scene.points_A2, (20.0, 20.0)), anchor_at(scene.points_A2, (28.0, 20.0))
    best, other = aligned_ciou(torch.tensor([box, box]), torch.tensor([part, smaller_part])).tolist()
    assert owners(assignment) == {better: 0, worse: 0}
    assert assignment.score_BA[0, better].item() == pytest.approx(best, rel=1e-5)
    assert assignment.score_BA[0, worse].item() == pytest.approx(best * (other / best) ** 6, rel=1e-5)


def test_assign__at_most_ten_anchors_those_of_highest_alignment() -> None:
    """Sixteen anchors inside a box predict ever smaller parts of it."""
    points = [(4.0 + 8 * column, 4.0 + 8 * row) for row in range(4) for column in range(4)]
    predicted = {point: (0.0, 0.0, 32.0, 32.0 - index) for index, point in enumerate(points)}
    scene = small_scene([(0.0, 0.0, 32.0, 32.0)], predicted)
    assert owners(assign(scene)) == {anchor_at(scene.points_A2, point): 0 for point in points[:TOP_K]}


def test_assign__contested_anchor_goes_to_the_box_it_overlaps_most() -> None:
    first, second = (0.0, 0.0, 32.0, 32.0), (4.0, 4.0, 40.0, 40.0)
    scene = small_scene([first, second], {(20.0, 20.0): (4.0, 4.0, 38.0, 38.0), (12.0, 12.0): first})
    contested, other = anchor_at(scene.points_A2, (20.0, 20.0)), anchor_at(scene.points_A2, (12.0, 12.0))
    assert owners(assign(scene)) == {contested: 1, other: 0}


def test_assign__contested_anchor_may_go_to_a_box_that_did_not_pick_it() -> None:
    """Box 2 has ten perfect anchors on its far edges, outside of boxes 0 and 1, so it does not pick (20, 20).

    Boxes 0 and 1 pick that one, which overlaps box 2 more than them. A box that picks it alone would keep it.
    """
    boxes = [(0.0, 0.0, 60.0, 50.0), (2.0, 2.0, 50.0, 60.0), (0.0, 0.0, 64.0, 64.0)]
    edge = [(60.0, 4.0 + 8 * row) for row in range(8)] + [(4.0, 60.0), (12.0, 60.0)]
    predicted = dict.fromkeys(edge, boxes[2]) | {(20.0, 20.0): (0.0, 0.0, 62.0, 62.0)}
    scene = small_scene(boxes, predicted)
    contested = anchor_at(scene.points_A2, (20.0, 20.0))
    on_edge = {anchor_at(scene.points_A2, point) for point in edge}

    assignment = assign(scene)
    positive = assignment.weight_P > 0
    assert set(assignment.anchor_P[positive].tolist()) == on_edge | {contested}
    assert assignment.box_P[positive].unique().tolist() == [2]
    # Twice a candidate, for the two boxes that picked it: each has half the weight.
    weights = assignment.weight_P[positive & (assignment.anchor_P == contested)]
    assert weights.tolist() == pytest.approx([assignment.score_BA[0, contested].item() / 2] * 2)

    without_first = small_scene(boxes[1:], predicted)
    assert owners(assign(without_first))[contested] == 0


def test_assign__of_equal_boxes_the_first_gets_the_anchors() -> None:
    box = (0.0, 0.0, 32.0, 32.0)
    scene = small_scene([box, box], {(20.0, 20.0): (0.0, 0.0, 32.0, 30.0)})
    scene = scene._replace(logits_BCA=torch.zeros(1, 2, 84), classes_N=torch.tensor([1, 0]))
    assignment = assign(scene)
    anchor = anchor_at(scene.points_A2, (20.0, 20.0))
    positive = assignment.weight_P > 0
    assert assignment.box_P[positive].tolist() == [0, 0]
    assert assignment.class_BA[0, anchor] == 1


def test_assign__boxes_of_other_images_do_not_compete() -> None:
    """The second image's box would win the anchor, were it in the first image."""
    first, second = (0.0, 0.0, 32.0, 32.0), (0.0, 0.0, 40.0, 40.0)
    scene = small_scene([first, second], {(20.0, 20.0): second})
    scene = scene._replace(
        logits_BCA=scene.logits_BCA.expand(2, -1, -1),
        predicted_BA4=scene.predicted_BA4.expand(2, -1, -1),
        image_index_N=torch.tensor([0, 1]),
    )
    assignment = assign(scene)
    anchor = anchor_at(scene.points_A2, (20.0, 20.0))
    assert owners(assignment) == {anchor: 0}
    assert assignment.score_BA[1, anchor] > assignment.score_BA[0, anchor] > 0


@pytest.mark.parametrize(("side", "expected"), [(4.0, 5), (15.9, 5), (16.1, 9), (40.0, TOP_K)])
def test_assign__small_boxes_are_stretched_to_sixteen_pixels(side: float, expected: int) -> None:
    """A box round the corner (16, 16) of four cells of stride 8, predicted by all anchors.

    Stretched to 8..24 it holds the centers of those four cells and of the stride-32 cell. 16.1 px also reach,
    by 0.05 px, the four centers of stride-16 cells at 8 and 24; 40 px reach more than the ten that are
    picked.
    """
    low, high = 16 - side / 2, 16 + side / 2
    scene = small_scene([(low, low, high, high)], {})
    scene = scene._replace(predicted_BA4=scene.boxes_N4.expand_as(scene.predicted_BA4))
    assert (assign(scene).score_BA > 0).sum() == expected


def test_assign__padding_is_ignored() -> None:
    scene = random_scene([7, 3], 3, (64, 64), seed=3)
    padded = scene._replace(
        boxes_N4=torch.cat([scene.boxes_N4, torch.zeros(6, 4)]),
        classes_N=torch.cat([scene.classes_N, torch.zeros(6, dtype=torch.int64)]),
        image_index_N=torch.cat([scene.image_index_N, torch.zeros(6, dtype=torch.int64)]),
    )
    # A prediction that fits padding at the origin.
    scene.predicted_BA4[0, 0] = torch.tensor([-4.0, -4.0, 4.0, 4.0])
    expected, assignment = assign(scene), assign(padded)
    assert torch.equal(assignment.score_BA, expected.score_BA)
    assert torch.equal(assignment.class_BA, expected.class_BA)
    assert not assignment.weight_P[10 * TOP_K :].any()


def test_assign__no_boxes() -> None:
    assignment = assign(random_scene([0, 0], 3, (64, 64), seed=0))
    assert assignment.score_BA.shape == (2, 84)
    assert not assignment.score_BA.any()
    assert assignment.weight_P.shape == (0,)


def test_assign__nan_predictions_give_valid_indices() -> None:
    """Diverged predictions must end in a NaN loss, not in an index error (a lost CUDA context on a GPU)."""
    for sign in (1, -1):
        scene = random_scene([5, 0, 4], 3, (64, 64), seed=0)
        scene.predicted_BA4[:] = torch.tensor(float("nan")).copysign(torch.tensor(float(sign)))
        assignment = assign(scene)
        assert ((assignment.box_P >= 0) & (assignment.box_P < 9)).all()
        assert assignment.score_BA.isnan().any()
