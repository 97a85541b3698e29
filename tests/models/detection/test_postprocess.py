from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from models.detection.postprocess import Detections, NmsConfig, detections


def clustered_boxes(num_images: int, num_anchors: int, num_clusters: int) -> Tensor:
    """Boxes in clusters of near copies, on a grid of 1/16 px.

    On that grid the reference's way of keeping classes apart, moving class c by 7680 c px, is exact in FP32.
    """
    corner = torch.rand(num_clusters, 2) * 500
    boxes = torch.cat([corner, corner + 20 + torch.rand(num_clusters, 2) * 100], dim=1)
    noise = torch.randn(num_images, num_anchors, 4) * 2
    return ((boxes[torch.randint(num_clusters, (num_images, num_anchors))] + noise) * 16).round() / 16


def assert_equal(ours: Detections, boxes: Tensor, scores: Tensor, classes: Tensor) -> None:
    assert torch.equal(ours.boxes_xyxy_px, boxes)
    assert torch.equal(ours.scores, scores)
    assert torch.equal(ours.classes, classes.long())


def reference_detections(boxes_BA4: Tensor, logits_BCA: Tensor, config: NmsConfig) -> list[Tensor]:
    from ultralytics.utils.nms import non_max_suppression

    center_boxes = box_convert(boxes_BA4, "xyxy", "cxcywh").transpose(1, 2)
    return non_max_suppression(
        torch.cat([center_boxes, logits_BCA.float().sigmoid()], dim=1),
        conf_thres=config.confidence,
        iou_thres=config.iou,
        multi_label=config.multi_label,
        max_nms=config.max_candidates,
        max_det=config.limit,
    )


@pytest.mark.parity
@pytest.mark.parametrize(
    ("num_anchors", "num_clusters", "mean_logit", "config"),
    [
        pytest.param(400, 400, -6, NmsConfig(), id="sparse"),
        pytest.param(2000, 20, -4, NmsConfig(), id="crowded"),
        pytest.param(2000, 20, -4, NmsConfig(max_detections=1000), id="crowded-many-kept"),
        pytest.param(2000, 100, -2, NmsConfig(confidence=0.25, multi_label=False), id="best-class-only"),
        pytest.param(1000, 50, -2, NmsConfig(iou=0.3, max_candidates=500), id="too-many-candidates"),
    ],
)
def test_detections__matches_reference(
    num_anchors: int, num_clusters: int, mean_logit: float, config: NmsConfig
) -> None:
    torch.manual_seed(num_anchors + num_clusters)
    boxes = clustered_boxes(3, num_anchors, num_clusters)
    logits = torch.randn(3, 25, num_anchors) * 2 + mean_logit
    ours = detections(boxes, logits, config)
    for image, reference in zip(ours, reference_detections(boxes, logits, config), strict=True):
        assert len(reference) > 20
        assert_equal(image, reference[:, :4], reference[:, 4], reference[:, 5])


@pytest.mark.parity
def test_detections__matches_reference_when_scores_tie() -> None:
    torch.manual_seed(0)
    boxes = clustered_boxes(2, 500, 20)
    logits = torch.randint(-8, 3, (2, 5, 500)).to(torch.bfloat16)  # eleven different scores
    for image, reference in zip(
        detections(boxes, logits, NmsConfig()), reference_detections(boxes, logits, NmsConfig()), strict=True
    ):
        assert_equal(image, reference[:, :4], reference[:, 4], reference[:, 5])


SCENE_BOXES = torch.tensor(
    [
        [0.0, 0, 100, 100],
        [0, 0, 100, 80],  # IoU 0.8 with the first
        [0, 0, 100, 60],  # IoU 0.6 with the first, 0.75 with the second
        [300, 300, 400, 400],
    ]
)
SCENE_SCORES = torch.tensor([[0.9, 0.8, 0.7, 0.0005], [0.3, 0.6, 0.0005, 0.0005]])


def detect_scene(config: NmsConfig) -> Detections:
    return detections(SCENE_BOXES[None], SCENE_SCORES.logit()[None], config)[0]


def test_detections__scene_by_hand() -> None:
    """Class 0: the first box is best; it takes out the second, which then cannot take out the third.

    Class 1: the second box is best and takes out the first. The fourth box is below the confidence in both.
    """
    found = detect_scene(NmsConfig())
    assert found.classes.tolist() == [0, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert torch.equal(found.boxes_xyxy_px, SCENE_BOXES[[0, 2, 1]])


def test_detections__best_class_only() -> None:
    """Each box is of class 0 only, so the second box is gone altogether."""
    found = detect_scene(NmsConfig(multi_label=False))
    assert found.classes.tolist() == [0, 0]
    assert torch.equal(found.boxes_xyxy_px, SCENE_BOXES[[0, 2]])


def test_detections__limits() -> None:
    assert detect_scene(NmsConfig(max_detections=2)).classes.tolist() == [0, 0]
    # The two best candidates are the first and second box of class 0; the first suppresses the second.
    assert len(detect_scene(NmsConfig(max_candidates=2)).scores) == 1
    assert len(detect_scene(NmsConfig(iou=0.5)).scores) == 2
    assert detect_scene(NmsConfig(confidence=0.65)).classes.tolist() == [0, 0]


def test_detections__the_best_candidates_may_all_be_of_one_object() -> None:
    """The first tries see nothing else: 3000 near copies of one box are all better than the six other boxes."""
    others = torch.arange(6).view(-1, 1) * 100 + torch.tensor([300.0, 0, 350, 50])
    boxes = torch.cat([torch.tensor([[0.0, 0, 100, 100]]).expand(3000, 4), others])
    scores = torch.cat([torch.linspace(0.9, 0.5, 3000), torch.linspace(0.4, 0.3, 6)])
    for limit, expected in ((300, 7), (3, 3)):
        found = detections(boxes[None], scores.logit().view(1, 1, -1), NmsConfig(max_detections=limit))[0]
        assert len(found.scores) == expected
        assert torch.equal(found.boxes_xyxy_px, torch.cat([boxes[:1], others])[:expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detections__the_limit_of_confidence_is_exact(dtype: torch.dtype) -> None:
    """Anchors are chosen by their logits first; not one is lost that scores just above the limit."""
    logits = torch.linspace(-1, 1, 2001).to(dtype)[None, None]
    boxes = torch.arange(2001).view(1, -1, 1) * 10 + torch.tensor([0.0, 0, 5, 5])
    for confidence in (0.3, 0.5, 0.62):
        config = NmsConfig(confidence=confidence, max_detections=3000)
        found = detections(boxes, logits, config)[0]
        assert len(found.scores) == (logits.float().sigmoid() > confidence).sum() > 500


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), num_anchors=st.integers(1, 60), iou=st.sampled_from([0.3, 0.5, 0.7]))
def test_detections__keep_what_no_better_one_overlaps(seed: int, num_anchors: int, iou: float) -> None:
    torch.manual_seed(seed)
    boxes = clustered_boxes(1, num_anchors, 5)
    logits = torch.randn(1, 3, num_anchors)
    scores = logits.sigmoid()
    found = detections(boxes, logits, NmsConfig(iou=iou, confidence=0))[0]
    assert found.scores.diff().le(0).all()
    for c in range(3):
        kept, kept_scores = found.boxes_xyxy_px[found.classes == c], found.scores[found.classes == c]
        assert box_iou(kept, kept).fill_diagonal_(0).le(iou).all()
        # What overlaps each candidate is the candidate itself, or is at least as good.
        covered = (box_iou(boxes[0], kept) > iou) & (kept_scores >= scores[0, c, :, None])
        assert covered.any(dim=1).all()


def test_detections__ignore_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    boxes, logits = clustered_boxes(4, 300, 30), torch.randn(4, 5, 300) - 3
    expected = detections(boxes, logits, NmsConfig())
    hours = iter(range(0, 10**9, 3600))
    for clock in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: float(next(hours)))
    slow = detections(boxes, logits, NmsConfig())
    cut_off = reference_detections(boxes, logits, NmsConfig())
    monkeypatch.undo()
    for image, reference in zip(slow, expected, strict=True):
        assert len(image.scores) > 100
        assert_equal(image, reference.boxes_xyxy_px, reference.scores, reference.classes)
    assert [len(image) > 0 for image in cut_off] == [True, False, False, False]  # what the clock would do


def test_detections__images_do_not_matter_to_each_other() -> None:
    torch.manual_seed(0)
    boxes, logits = clustered_boxes(3, 200, 10), torch.randn(3, 5, 200) - 2
    together = detections(boxes, logits, NmsConfig())
    for i, image in enumerate(together):
        alone = detections(boxes[i : i + 1], logits[i : i + 1], NmsConfig())[0]
        assert_equal(image, alone.boxes_xyxy_px, alone.scores, alone.classes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_detections__computes_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    boxes, logits = clustered_boxes(1, 200, 10).to(dtype), torch.randn(1, 5, 200).to(dtype)
    boxes_before = boxes.clone()
    found = detections(boxes, logits, NmsConfig())[0]
    reference = detections(boxes.float(), logits.float(), NmsConfig())[0]
    assert found.boxes_xyxy_px.dtype == found.scores.dtype == torch.float32
    assert_equal(found, reference.boxes_xyxy_px, reference.scores, reference.classes)
    assert torch.equal(boxes, boxes_before)


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("logit", [-20.0, float("nan")])
def test_detections__nothing_found(multi_label: bool, logit: float) -> None:
    logits = torch.full((2, 5, 30), logit)
    for image in detections(torch.rand(2, 30, 4), logits, NmsConfig(multi_label=multi_label)):
        assert_equal(image, torch.empty(0, 4), torch.empty(0), torch.empty(0))
        assert image.classes.dtype == torch.int64


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("confidence", 1.5, "must be between 0 and 1"),
        ("iou", -0.1, "must be between 0 and 1"),
        ("max_candidates", 0, "must be at least 1"),
        ("max_detections", 0, "must be at least 1"),
    ],
)
def test_nms_config__rejects_values_out_of_range(key: str, value: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.nms\.{key}: {value}: {rule}$"):
        NmsConfig(**{key: value})
