"""Validation: in the precision of training, never in another one; of rectangles as of squares."""

from __future__ import annotations

import cv2
import pytest
import torch
from torch import nn

from data.dataset import ValidationDataset
from data.dataset_yaml import read_dataset_yaml
from data.index import ImageIndex, build_index
from data.loader import build_validation_loader
from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.evaluation import Evaluation, predict_raw
from models.boxes import decode_boxes
from models.loss import DetectionLoss, LossGains
from models.network import build_network, detection_head, head_strides
from models.postprocess import NmsConfig, detections


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
        centre, size = decoded[:, :2], decoded[:, 2:4]
        expected = torch.cat([centre - size / 2, centre + size / 2], 1).transpose(1, 2)
        boxes = decode_boxes(raw, head_strides(network))
    torch.testing.assert_close(boxes, expected, atol=1e-3, rtol=0)
