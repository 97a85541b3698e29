"""Validation runs in the precision of training, never in another one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.evaluation import predict_raw
from models.boxes import decode_boxes
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
