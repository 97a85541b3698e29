from __future__ import annotations

import gc
import json
import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from engine.validation.matching import Pairs, greedy_match, overlapping_pairs
from engine.validation.metrics import DetectionMetrics, DetectionResults
from models.detection.postprocess import Detections
from tests.helpers.runs import run_together

NAMES = ["a", "b", "c", "d", "e"]
Truth = tuple[Tensor, Tensor]  # boxes (n, 4), classes (n,)


def image(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detections:
    boxes_n4, classes_n = truth(boxes, classes)
    return Detections(boxes_n4, torch.tensor(scores), classes_n)


def truth(boxes: list[list[float]], classes: list[int]) -> Truth:
    return torch.tensor(boxes).float().view(-1, 4), torch.tensor(classes).long()


def add(metrics: DetectionMetrics, found: list[Detections], true: list[Truth]) -> None:
    boxes, classes = zip(*true, strict=True)
    index = torch.repeat_interleave(torch.arange(len(true)), torch.tensor([len(x) for x in classes]))
    metrics.update(found, torch.cat(boxes), torch.cat(classes), index)


def results(found: list[Detections], true: list[Truth], names: list[str] = NAMES) -> DetectionResults:
    metrics = DetectionMetrics(names)
    add(metrics, found, true)
    return metrics.compute()


def random_scene(
    seed: int, num_images: int, num_truth: int, num_detections: int
) -> tuple[list[Detections], list[Truth]]:
    """Truth of all sizes, and noisy copies of it, a quarter in the wrong class; class "e" has no truth."""
    torch.manual_seed(seed)
    found, true = [], []
    for _ in range(num_images):
        corner, size = torch.rand(num_truth, 2) * 500, 5 + torch.rand(num_truth, 2) ** 3 * 200
        boxes = torch.cat([corner, corner + size], dim=1)
        classes = torch.randint(len(NAMES) - 1, (num_truth,))
        copied = torch.randint(num_truth, (num_detections,))
        near = boxes[copied] + torch.randn(num_detections, 4) * size[copied].repeat(1, 2) * 0.08
        wrong = torch.rand(num_detections) < 0.25
        guess = torch.where(wrong, torch.randint(len(NAMES), (num_detections,)), classes[copied])
        found.append(Detections(near, torch.rand(num_detections).sort(descending=True).values, guess))
        true.append((boxes, classes))
    return found, true


def coco_dataset(boxes: list[Tensor], classes: list[Tensor], scores: list[Tensor] | None) -> COCO:
    annotations = []
    for i, (image_boxes, image_classes) in enumerate(zip(boxes, classes, strict=True)):
        for k, (x1, y1, x2, y2) in enumerate(image_boxes.tolist()):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotation = {"id": len(annotations) + 1, "image_id": i, "bbox": box, "area": box[2] * box[3]}
            annotation |= {"category_id": int(image_classes[k]), "iscrowd": 0}
            annotations.append(annotation | ({"score": float(scores[i][k])} if scores else {}))
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": i} for i in range(len(boxes))],
        "annotations": annotations,
        "categories": [{"id": c, "name": name} for c, name in enumerate(NAMES)],
    }
    dataset.createIndex()
    return dataset


def coco_precision(found: list[Detections], true: list[Truth]) -> np.ndarray:
    """COCO's precision (IoU, recall, class, size) with every detection, from faster-coco-eval itself."""
    evaluation = COCOeval_faster(
        coco_dataset([boxes for boxes, _ in true], [classes for _, classes in true], None),
        coco_dataset([x.boxes_xyxy_px for x in found], [x.classes for x in found], [x.scores for x in found]),
        "bbox",
        print_function=lambda *_: None,
    )
    evaluation.params.maxDets = [10_000]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def coco_mean(precision: np.ndarray) -> float:
    return precision[precision > -1].mean()


@pytest.mark.parametrize("boxes_at_once", [1, 700, 10**6])
@pytest.mark.parametrize(
    ("num_images", "num_truth", "num_detections"),
    [(40, 10, 30), (3, 250, 290), (2, 700, 1500), (1, 2, 3)],
    ids=["many-images", "crowded", "very-crowded", "few-boxes"],
)
def test_compute__matches_faster_coco_eval(
    num_images: int, num_truth: int, num_detections: int, boxes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.validation.metrics.COCO_BOXES_AT_ONCE", boxes_at_once)
    found, true = random_scene(1, num_images, num_truth, num_detections)
    ours, precision = results(found, true), coco_precision(found, true)
    references = {
        "map50_95": precision[..., 0],
        "map50": precision[0, ..., 0],
        "map75": precision[5, ..., 0],
        "map_small": precision[..., 1],
        "map_medium": precision[..., 2],
        "map_large": precision[..., 3],
    }
    for name, reference in references.items():
        if (reference > -1).any():
            assert getattr(ours, name) == pytest.approx(coco_mean(reference), abs=1e-6), name
        else:
            assert math.isnan(getattr(ours, name)), name
    for c in np.flatnonzero(ours.num_truth_C):
        assert ours.ap50_95_C[c] == pytest.approx(precision[:, :, c, 0].mean(), abs=1e-6)
        assert ours.ap50_C[c] == pytest.approx(precision[0, :, c, 0].mean(), abs=1e-6)
    np.testing.assert_allclose(ours.pr_curve.mean(axis=1), ours.ap50_C)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_images=st.integers(1, 8),
    share_empty=st.sampled_from([0.0, 0.4, 1.0]),
    num_levels=st.sampled_from([2, 5, 10**6]),
    num_detections=st.sampled_from([20, 20, 20, 800]),
)
def test_compute__matches_faster_coco_eval_on_any_set(
    seed: int, num_images: int, share_empty: float, num_levels: int, num_detections: int
) -> None:
    """Images without truth or detections, exact copies of boxes, few levels of score with many ties, and crowds."""
    random = np.random.default_rng(seed)
    found, true = random_scene(seed, num_images, 6, num_detections)
    for i in range(num_images):
        boxes, _ = true[i]
        scores = torch.from_numpy(random.integers(1, num_levels + 1, num_detections) / num_levels).float()
        detections = found[i]
        if random.random() < 0.5:
            detections.boxes_xyxy_px[:6] = boxes
        order = scores.argsort(descending=True, stable=True)
        found[i] = Detections(detections.boxes_xyxy_px[order], scores[order], detections.classes[order])
        if random.random() < share_empty:
            found[i] = NOTHING_FOUND
        if random.random() < share_empty:
            true[i] = NOTHING_TRUE
    ours = results(found, true)
    if not ours.num_truth_C.sum():
        assert math.isnan(ours.map50_95)
        return
    precision = coco_precision(found, true) if any(len(x.scores) for x in found) else np.zeros((10, 101, 5, 4))
    known = ours.num_truth_C > 0
    np.testing.assert_allclose(ours.ap50_95_C[known], precision[:, :, known, 0].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(ours.ap50_C[known], precision[0, :, known, 0].mean(axis=1), atol=1e-6)
    assert ours.map50_95 == pytest.approx(ours.ap50_95_C[known].mean(), abs=1e-6)


@pytest.mark.parametrize("num_objects", [290, 300, 301, 2000])
def test_compute__counts_every_detection_of_a_crowd(num_objects: int) -> None:
    """All found in one picture: with COCO's usual limit of 100 detections, AP would be 0.35 at best."""
    number = torch.arange(float(num_objects))
    corners = torch.stack([number % 50, number // 50], 1) * 20
    boxes = torch.cat([corners, corners + 10], dim=1)
    scores, classes = torch.linspace(0.9, 0.3, num_objects), torch.zeros(num_objects).long()
    ours = results([Detections(boxes, scores, classes)], [(boxes, classes)])
    assert ours.map50_95 == ours.map50 == pytest.approx(1)
    assert ours.recall == pytest.approx(1) and ours.confusion[0, 0] == num_objects


def reference_matches(found: list[Detections], true: list[Truth]) -> list[np.ndarray]:
    """Ultralytics' (D, 10) hits, scores and classes of detections, and classes of truth."""
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import box_iou as reference_iou

    validator = SimpleNamespace(iouv=torch.linspace(0.5, 0.95, 10))
    rows = []
    for detections, (boxes, classes) in zip(found, true, strict=True):
        iou = reference_iou(boxes, detections.boxes_xyxy_px)
        hits = BaseValidator.match_predictions(validator, detections.classes, classes, iou)
        rows.append([x.numpy() for x in (hits, detections.scores, detections.classes, classes)])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@pytest.mark.parity
@pytest.mark.parametrize("seed", [0, 1])
def test_compute__matches_ultralytics(seed: int) -> None:
    from ultralytics.utils.metrics import ConfusionMatrix, ap_per_class

    found, true = random_scene(seed, 60, 12, 40)
    ours = results(found, true)
    _, _, precision, recall, f1, ap, classes, p_curve, r_curve, f1_curve, _, _ = ap_per_class(
        *reference_matches(found, true)
    )
    assert classes.tolist() == np.flatnonzero(ours.num_truth_C).tolist() == [0, 1, 2, 3]
    for mine, reference in [
        (ours.precision_C, precision),
        (ours.recall_C, recall),
        (ours.f1_C, f1),
        (ours.precision_curve, p_curve),
        (ours.recall_curve, r_curve),
        (ours.f1_curve, f1_curve),
    ]:
        np.testing.assert_allclose(mine[classes], reference, atol=1e-9)
    # Theirs is the trapezoid rule over 101 interpolated points, COCO's the mean of 101 steps.
    np.testing.assert_allclose(ours.ap50_95_C[classes], ap.mean(axis=1), atol=5e-3)
    np.testing.assert_allclose(ours.ap50_C[classes], ap[:, 0], atol=5e-3)

    confusion = ConfusionMatrix(names=dict(enumerate(NAMES)))
    for detections, (boxes, truth_classes) in zip(found, true, strict=True):
        confusion.process_batch(
            {"bboxes": detections.boxes_xyxy_px, "conf": detections.scores, "cls": detections.classes},
            {"bboxes": boxes, "cls": truth_classes},
        )
    np.testing.assert_array_equal(ours.confusion, confusion.matrix)


@pytest.mark.parametrize(("iou", "is_match"), [(0.42, False), (0.44, False), (0.46, True), (0.49, True), (0.6, True)])
def test_compute__confusion_from_an_iou_of_045(iou: float, is_match: bool) -> None:
    """As Ultralytics does: below the 0.5 of precision and recall. A box within a box has the IoU of their areas."""
    ours = results([image([[0, 0, 100 * iou, 100]], [0.9], [2])], [truth([[0, 0, 100, 100]], [1])])
    missed, alone = ours.confusion[-1, 1], ours.confusion[2, -1]
    assert (ours.confusion[2, 1], missed, alone) == ((1, 0, 0) if is_match else (0, 1, 1))


def test_compute__class_that_is_found_nowhere_has_no_precision() -> None:
    """Class b has a detection at a low score only, beneath the best confidence: precision 0, not 1, beside recall 0."""
    boxes = [[40.0 * k, 0, 40.0 * k + 30, 30] for k in range(20)]
    true = truth([*boxes, [0, 50, 30, 80]], [0] * 20 + [1])
    wrong = [[40.0 * k, 200, 40.0 * k + 30, 230] for k in range(40)]
    scores = [0.9] * 20 + [0.4] * 40 + [0.05]
    ours = results([image([*boxes, *wrong, [0, 90, 30, 120]], scores, [0] * 60 + [1])], [true], ["a", "b"])
    assert ours.confidence > 0.4
    assert (ours.precision_C[1], ours.recall_C[1], ours.f1_C[1]) == (0, 0, 0)
    assert ours.precision == pytest.approx(0.5, abs=0.01) and ours.recall == pytest.approx(0.5, abs=0.01)
    assert (ours.precision_C > 0).tolist() == (ours.recall_C > 0).tolist() == [True, False]


def test_compute__perfect_scene() -> None:
    """Small, medium and large objects, all found exactly and with certainty: every metric is 1."""
    boxes = [[0, 0, 10, 10], [100, 100, 150, 150], [200, 200, 400, 400]]
    ours = results([image(boxes, [0.99, 0.98, 0.97], [0, 1, 1])], [truth(boxes, [0, 1, 1])])
    for name, value in ours.summary().items():
        assert name == "val/confidence" or value == pytest.approx(1), name
    np.testing.assert_array_equal(ours.confusion[:2, :2], [[1, 0], [0, 2]])
    assert ours.confusion.sum() == 3


def test_compute__degenerate_scene() -> None:
    """Right boxes in wrong classes, one of which has no truth at all: every metric is 0, none undefined."""
    boxes = [[0, 0, 10, 10], [100, 100, 150, 150], [200, 200, 400, 400]]
    ours = results([image(boxes, [0.9, 0.8, 0.7], [1, 0, 4])], [truth(boxes, [0, 1, 1])])
    for name in ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "recall", "f1"):
        assert getattr(ours, name) == 0, name
    assert ours.confusion[1, 0] == ours.confusion[0, 1] == ours.confusion[4, 1] == 1
    assert ours.confusion.sum() == 3


def test_compute__mixed_scene() -> None:
    """Three objects of class b in two pictures, all medium; by descending score:

    score 0.9: exact; 0.8: beside everything; 0.7: IoU 32 * 40 / (2 * 1600 - 32 * 40) = 2/3. One is missed.
    Up to IoU 0.65 (four thresholds) the precision over recall is 1 up to recall 1/3, which is 34 of the 101
    points, and 2/3 up to recall 2/3, which is 33 more: AP (34 + 22) / 101. Above, the third is no hit: AP
    34 / 101. At low confidence two of three detections are right, and two of three objects found.
    """
    true = [truth([[0, 0, 40, 40], [100, 0, 140, 40]], [1, 1]), truth([[0, 0, 40, 40]], [1])]
    found = [image([[0, 0, 40, 40], [300, 0, 340, 40]], [0.9, 0.8], [1, 1])]
    found += [image([[8, 0, 48, 40]], [0.7], [1])]
    ours = results(found, true)
    assert (ours.map50, ours.ap50_C[1]) == pytest.approx((56 / 101, 56 / 101))
    assert ours.map75 == pytest.approx(34 / 101)
    assert ours.map50_95 == ours.map_medium == pytest.approx((4 * 56 + 6 * 34) / 1010)
    assert ours.ap50_95_C[1] == pytest.approx((4 * 56 + 6 * 34) / 1010)
    assert math.isnan(ours.map_small)
    assert (ours.precision, ours.recall, ours.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert 0 <= ours.confidence < 0.7
    assert ours.confusion[1, 1] == 2
    assert ours.confusion[1, -1] == ours.confusion[-1, 1] == 1
    assert ours.confusion.sum() == 4


def test_compute__classes_without_truth_do_not_count() -> None:
    boxes = [[0, 0, 50, 50]]
    ours = results([image(boxes * 2, [0.9, 0.95], [0, 3])], [truth(boxes, [0])])
    assert ours.map50 == ours.precision == pytest.approx(1)
    assert ours.ap50_C[0] == pytest.approx(1)
    assert np.isnan(ours.ap50_C[1:]).all()
    assert np.isnan(ours.f1_C[1:]).all()


NOTHING_FOUND, NOTHING_TRUE = image([], [], []), truth([], [])
SOMETHING_FOUND, SOMETHING_TRUE = image([[0, 0, 9, 9]], [0.9], [1]), truth([[0, 0, 9, 9]], [1])


@pytest.mark.parametrize("names", [["a", "b"], NAMES])
def test_compute__nothing_found(names: list[str]) -> None:
    ours = results([NOTHING_FOUND, NOTHING_FOUND], [SOMETHING_TRUE, NOTHING_TRUE], names)
    assert ours.map50_95 == ours.map_small == ours.precision == ours.recall == ours.f1 == 0
    assert ours.confusion[-1, 1] == ours.confusion.sum() == 1
    assert ours.num_images == 2


@pytest.mark.parametrize("found", [NOTHING_FOUND, SOMETHING_FOUND], ids=["nothing-found", "something-found"])
def test_compute__nothing_true(found: Detections) -> None:
    ours = results([found], [NOTHING_TRUE])
    assert all(math.isnan(value) for value in ours.summary().values())
    assert ours.confusion[1, -1] == ours.confusion.sum() == len(found.scores)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_compute__no_images() -> None:
    ours = DetectionMetrics(NAMES).compute()
    assert ours.num_images == 0
    assert math.isnan(ours.map50_95)


def assert_same(ours: DetectionResults, reference: DetectionResults) -> None:
    for field in fields(DetectionResults):
        np.testing.assert_array_equal(getattr(ours, field.name), getattr(reference, field.name), field.name)


def test_update__any_division_into_batches_gives_the_same() -> None:
    found, true = random_scene(3, 7, 6, 15)
    metrics = DetectionMetrics(NAMES)
    for images in (slice(0, 1), slice(1, 5), slice(5, 7)):
        add(metrics, found[images], true[images])
    assert_same(metrics.compute(), results(found, true))
    metrics.reset()
    add(metrics, found[:2], true[:2])
    assert_same(metrics.compute(), results(found[:2], true[:2]))


def test_update__keeps_24_bytes_a_detection_on_the_host() -> None:
    found, true = random_scene(0, 4, 5, 20)
    metrics = DetectionMetrics(NAMES)
    with torch.inference_mode():
        add(metrics, found, true)
    state = [*metrics.detections, *metrics.truth, *metrics.counts]
    assert sum(tensor.nbytes for tensor in state) == 4 * (20 * 24 + 5 * 20 + 8)
    assert_same(metrics.compute(), results(found, true))


SHARES = {"uneven": (slice(0, 3), slice(3, 5)), "one without images": (slice(0, 5), slice(5, 5))}


def share_images(rank: int, folder: str) -> None:
    """What each of two processes does: add its images, compute the metrics of all, keep them."""
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    found, true = random_scene(5, 5, 6, 15)
    for case, shares in SHARES.items():
        metrics = DetectionMetrics(NAMES)
        if found[shares[rank]]:
            add(metrics, found[shares[rank]], true[shares[rank]])
        torch.save(vars(metrics.compute()), f"{folder}/{case} {rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_compute__two_processes_give_what_one_gives(tmp_path: Path) -> None:
    run_together(share_images, (str(tmp_path),), 2)
    reference = results(*random_scene(5, 5, 6, 15))
    for case in SHARES:
        for rank in range(2):
            ours = torch.load(tmp_path / f"{case} {rank}.pt", weights_only=False)  # our own file
            assert_same(DetectionResults(**ours), reference)


@settings(deadline=None, max_examples=60)
@example(seed=7, num_detections=24, num_truth=22, grid=0)  # NaN among the truth's edges
@given(
    seed=st.integers(0, 10**6),
    num_detections=st.integers(0, 40),
    num_truth=st.integers(0, 30),
    grid=st.sampled_from([0, 4, 20]),
)
def test_overlapping_pairs__are_those_of_every_pair(seed: int, num_detections: int, num_truth: int, grid: int) -> None:
    """Also on a grid, with equal edges and IoUs at the limit, and for boxes without area or of NaN."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        corner, size = torch.rand(count, 2, generator=generator) * 30, torch.rand(count, 2, generator=generator) * 25
        rows = torch.cat([corner, corner + size], 1)
        rows = (rows * grid / 30).round() if grid else rows
        rows[torch.rand(count, generator=generator) < 0.05] = torch.nan
        return rows

    found, true = [boxes(num_detections), boxes(3)], [boxes(num_truth), boxes(2)]
    pairs = overlapping_pairs(found, true, 0.45)
    expected = [(box_iou(a, b) >= 0.45).nonzero() for a, b in zip(found, true, strict=True)]
    indices = torch.cat([expected[0], expected[1] + torch.tensor([num_detections, num_truth])])
    np.testing.assert_array_equal(np.stack([pairs.detection_P, pairs.truth_P], 1), indices)
    iou = [box_iou(a, b)[tuple(e.T)] for a, b, e in zip(found, true, expected, strict=True)]
    np.testing.assert_array_equal(pairs.iou_P, torch.cat(iou))


def loop_match(pairs: Pairs, scores_D: np.ndarray) -> np.ndarray:
    """The definition of greedy matching, one detection after the other."""
    match_D, taken = np.full(len(scores_D), -1), set()
    for detection in np.argsort(-scores_D, kind="stable"):
        free = [
            (-iou, truth)
            for d, truth, iou in zip(pairs.detection_P, pairs.truth_P, pairs.iou_P, strict=True)
            if d == detection and truth not in taken
        ]
        if free:
            match_D[detection] = min(free)[1]
            taken.add(match_D[detection])
    return match_D


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_detections=st.integers(0, 25),
    num_truth=st.integers(0, 12),
    num_levels=st.sampled_from([3, 1000]),
)
def test_greedy_match__equals_the_loop(seed: int, num_detections: int, num_truth: int, num_levels: int) -> None:
    """Also where scores and IoUs are equal: few levels make many ties."""
    random = np.random.default_rng(seed)
    detection, box = np.nonzero(random.random((num_detections, num_truth)) < random.random())
    iou = random.integers(num_levels, size=len(detection)) / num_levels
    pairs, scores = Pairs(detection, box, iou), random.integers(num_levels, size=num_detections) / num_levels
    np.testing.assert_array_equal(greedy_match(pairs, scores), loop_match(pairs, scores))


def test_results__plain_values() -> None:
    ours = results([SOMETHING_FOUND], [SOMETHING_TRUE])
    plain = json.loads(json.dumps(ours.as_dict(), allow_nan=False))
    assert plain["map50_95"] == plain["classes"][1]["ap50_95"] == pytest.approx(1)
    assert plain["map_large"] is None
    assert plain["classes"][0] == {
        "name": "a",
        "num_truth": 0,
        "precision": None,
        "recall": None,
        "f1": None,
        "ap50": None,
        "ap50_95": None,
    }
    assert plain["confusion"][1][1] == plain["num_images"] == 1
    assert set(ours.summary()) > {"val/map50", "val/map50_95", "val/precision", "val/recall"}


def test_results__table() -> None:
    lines = results([SOMETHING_FOUND], [SOMETHING_TRUE]).table().splitlines()
    assert lines[0].split() == ["class", "boxes", "P", "R", "F1", "AP50", "AP50-95"]
    assert lines[1].split() == ["all", "1"] + ["1.000"] * 5
    assert lines[2].split() == ["a", "0"] + ["-"] * 5
    assert len(lines) == 1 + 1 + len(NAMES) + 1


@pytest.mark.parametrize("enabled", [True, False])
def test_compute__leaves_garbage_collection_as_it_was(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        results([SOMETHING_FOUND], [SOMETHING_TRUE])
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
