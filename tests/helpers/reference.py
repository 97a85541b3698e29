"""The Ultralytics implementation, as a numeric reference for tests only."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from ultralytics.utils.loss import v8DetectionLoss

from data.loading.batch import Batch
from models.network import network_input


def ultralytics_criterion(network: nn.Module) -> v8DetectionLoss:
    """Their loss for this network, with the usual gains."""
    network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    return v8DetectionLoss(network)


def ultralytics_batch(batch: Batch) -> dict[str, Tensor]:
    """Our batch in the form that their loss takes: normalised center boxes."""
    height, width = batch.images.shape[2:]
    x1, y1, x2, y2 = batch.boxes_xyxy_px.unbind(1)
    center_boxes = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    return {
        "batch_idx": batch.image_index.float(),
        "cls": batch.classes.float().view(-1, 1),
        "bboxes": torch.stack(center_boxes, 1),
    }


def ultralytics_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Their training loss: the sum of the three terms, times the number of images."""
    loss, _ = ultralytics_criterion(network)(network(network_input(batch.images)), ultralytics_batch(batch))
    return loss.sum()
