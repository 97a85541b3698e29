"""Validation: in the precision of training, never in another one; of rectangles as of squares."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index
from data.loading.dataset import ValidationDataset
from data.loading.loader import build_validation_loader
from engine.validation.evaluation import Evaluation, predict_raw
from models.detection.boxes import decode_boxes
from models.detection.loss import DetectionLoss, LossGains
from models.detection.postprocess import NmsConfig, detections
from models.network import build_network, detection_head, head_strides


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_predict_raw__in_the_precision_of_training(precision: str, dtype: torch.dtype) -> None:
    network = build_network("yolo11n", 2).eval()
    dtypes: set[torch.dtype] = set()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    predict_raw(network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), precision)
    # The fixed projection that only the reference's decoding uses is not ours; all else has one dtype.
    assert dtypes == {dtype}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predict_raw__activations_beyond_the_range_of_fp16(precision: str) -> None:
    """A network trained in bf16 may have activations of 1e5; fp16 ends at 65504."""
    network = build_network("yolo11n", 2).eval()
    stem = network.model[0].conv
    stem.weight.data.fill_(1e5)
    seen: list[float] = []
    stem.register_forward_hook(lambda module, inputs, output: seen.append(float(output.abs().max())))
    images = torch.randint(1, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    predictions = predict_raw(network, images, precision)
    assert 65504 < seen[0] < float("inf")
    assert predictions["boxes"].isfinite().all() and predictions["scores"].isfinite().all()
    boxes = decode_boxes(predictions, head_strides(network))
    assert boxes.dtype == torch.float32 and boxes.isfinite().all()
    assert len(detections(boxes, predictions["scores"], NmsConfig())) == 1
    assert detection_head(network).nc == 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Drawn boards, cut to several shapes."""
    data_yaml = generate_pcb_dataset(tmp_path_factory.mktemp("boards") / "set", SyntheticConfig(2, 6, 128))
    for number, file in enumerate(sorted((data_yaml.parent / "images" / "val").iterdir())):
        board = cv2.imread(str(file))
        cv2.imwrite(str(file), board[: (128, 60, 128)[number % 3], : (128, 128, 90)[number % 3]])
    return build_index(read_dataset_yaml(data_yaml), "val")


def evaluate(index: ImageIndex, batch_size: int, rectangular: bool) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Metrics, and each picture's detections in its own pixels, by name."""
    torch.manual_seed(0)
    network = build_network("yolo11n", 8).eval()
    evaluation = Evaluation(
        DetectionLoss(head_strides(network)), LossGains(), NmsConfig(confidence=1e-6), [str(i) for i in range(8)]
    )
    found = {}
    for batch in build_validation_loader(ValidationDataset(index, 128, rectangular), batch_size):
        detected = evaluation.update(network, batch, "fp32")
        found |= dict(zip(batch.names, (image.boxes_xyxy_px for image in detected), strict=True))
    return evaluation.losses(), [found[name] for name in sorted(found)]


def test_evaluation__rectangles_find_the_same_for_any_batch_size(pictures: ImageIndex) -> None:
    losses, found = evaluate(pictures, 1, rectangular=True)
    assert sum(len(boxes) for boxes in found) > 100
    for batch_size in (2, 6):
        other_losses, other = evaluate(pictures, batch_size, rectangular=True)
        assert other_losses == pytest.approx(losses, rel=1e-4)  # convolutions round differently by batch size
        for a, b in zip(found, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-2, rtol=0)


def test_losses__are_divided_once_by_the_target_scores_of_all_images(pictures: ImageIndex) -> None:
    """As in training: the sums over all images, with gains, over the sum of all target scores."""
    torch.manual_seed(0)
    network = build_network("yolo11n", 8).eval()
    loss = DetectionLoss(head_strides(network))
    evaluation = Evaluation(loss, LossGains(box=2.0, cls=3.0, dfl=5.0), NmsConfig(), [str(i) for i in range(8)])
    box = cls = dfl = normaliser = 0.0
    for batch in build_validation_loader(ValidationDataset(pictures, 128), 2):
        evaluation.update(network, batch, "fp32")
        with torch.inference_mode():
            predictions = predict_raw(network, batch.images, "fp32")
            sums = loss(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)
        box, cls, dfl = box + float(sums.box), cls + float(sums.cls), dfl + float(sums.dfl)
        normaliser += float(sums.normaliser)
    assert normaliser > 1
    expected = {"box_loss": 2 * box / normaliser, "cls_loss": 3 * cls / normaliser, "dfl_loss": 5 * dfl / normaliser}
    assert evaluation.losses() == pytest.approx(expected, rel=1e-5)


def crowd(*counts: int) -> ImageIndex:
    """Images with so many objects each."""
    offsets = np.cumsum([0, *counts])
    boxes = np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), (offsets[-1], 1))
    paths = np.frombuffer(b"a" * len(counts), np.uint8)
    sizes = np.full((len(counts), 2), 64, np.int32)
    return ImageIndex(paths, np.arange(len(counts) + 1), boxes, np.zeros(len(boxes), np.int32), offsets, sizes)


@pytest.mark.parametrize(
    ("given", "counts", "kept", "said"),
    [
        ({}, (3, 150), 300, ""),
        ({}, (3, 0, 151), 302, "302 detections of an image count instead of 300: one has 151 objects"),
        ({}, (1200, 3), 2400, "one has 1200 objects"),
        ({"max_detections": 100}, (3, 99), 100, ""),
        ({"max_detections": 1000}, (3, 400), 1000, ""),
        ({"max_detections": 300}, (3, 400), 300, "300: an image has 400 objects, which cannot all be found"),
        ({"max_candidates": 500}, (3, 400), 500, "500 detections of an image count"),
    ],
)
def test_prepare__keeps_enough_detections_for_the_most_crowded_image(
    given: dict, counts: tuple[int, ...], kept: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = Evaluation(None, None, NmsConfig(**given), ["a"])
    evaluation.prepare(crowd(*counts))
    assert evaluation.nms.limit == kept
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (said != "") and all(said in line for line in lines)
    assert all("\n" not in line for line in lines)


def test_prepare__tells_that_there_is_nothing_to_measure(caplog: pytest.LogCaptureFixture) -> None:
    Evaluation(None, None, NmsConfig(), ["a"]).prepare(crowd(0, 0))
    assert "no object in any of 2 images: there is nothing to measure" in caplog.text


def test_evaluation__boxes_of_rectangles_lie_in_the_picture_they_are_of(pictures: ImageIndex) -> None:
    _, found = evaluate(pictures, 6, rectangular=True)
    for boxes, (height, width) in zip(found, pictures.sizes_hw.tolist(), strict=True):
        assert boxes.min() >= 0 and (boxes <= torch.tensor([width, height] * 2)).all()
        assert boxes[:, 2].max() > 0.8 * width and boxes[:, 3].max() > 0.8 * height  # all of it is looked at


def test_decode_boxes__of_a_rectangle_is_the_reference() -> None:
    network = build_network("yolo11n", 8).eval()
    images = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoded, raw = network(images)
        center, size = decoded[:, :2], decoded[:, 2:4]
        expected = torch.cat([center - size / 2, center + size / 2], 1).transpose(1, 2)
        boxes = decode_boxes(raw, head_strides(network))
    torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=0)
