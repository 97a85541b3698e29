"""Validation of a network: from predictions to detections, metrics and the loss of the whole validation set."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor, nn

from data.indexing.index import ImageIndex
from data.loading.batch import Batch, to_original_px
from engine.training.precision import AUTOCAST_DTYPE, Precision, autocast
from engine.training.ranks import Ranks, all_present
from engine.validation.metrics import DetectionMetrics, DetectionResults
from models.detection.boxes import RawPredictions, decode_boxes
from models.detection.loss import MIN_NORMALISER, DetectionLoss, LossGains
from models.detection.postprocess import FEWEST_KEPT, Detections, NmsConfig, detections
from models.network import head_strides, network_input, raw_predictions

log = logging.getLogger(__name__)


def predict_raw(
    network: nn.Module, images: Tensor, precision: Precision, fused_kernels: bool = False
) -> RawPredictions:
    """Raw predictions of a network in evaluation mode for uint8 images (B, 3, H, W), in the precision of training."""
    with torch.inference_mode(), autocast(precision, images.device):
        return raw_predictions(network(network_input(images, AUTOCAST_DTYPE[precision], fused_kernels)))


class Evaluation:
    """Runs a network over a validation set and collects metrics and losses.

    Detections are compared with true boxes in pixels of the original images, so that the results equal those of COCO's
    tools.
    """

    def __init__(self, loss: DetectionLoss, gains: LossGains, nms: NmsConfig, class_names: list[str]) -> None:
        self.loss = loss
        self.gains = gains
        self.nms = nms
        self.metrics = DetectionMetrics(class_names)
        self.reset()

    def prepare(self, index: ImageIndex) -> None:
        """Keep as many detections as the most crowded image needs, and warn if something cannot be measured."""
        most_objects = int(np.diff(index.box_offsets).max(initial=0))
        is_given = self.nms.max_detections != "auto"
        self.nms = self.nms.for_crowds(most_objects)
        if not most_objects:
            log.warning(
                "validation: no object in any of %d images: there is nothing to measure. The newest epoch counts as "
                "the best one, and run.patience has no effect. Add labels to the validation images.",
                len(index),
            )
        elif most_objects > self.nms.limit:
            log.warning(
                "model.nms.max_detections: %d: an image has %d objects, which cannot all be found. Leave the key out.",
                self.nms.limit,
                most_objects,
            )
        elif self.nms.limit > FEWEST_KEPT and not is_given:
            log.warning(
                "model.nms.max_detections: auto: %d detections of an image count instead of %d: one has %d objects.",
                self.nms.limit,
                FEWEST_KEPT,
                most_objects,
            )

    def reset(self) -> None:
        """Remove everything that was added."""
        self.metrics.reset()
        self._totals: Tensor | float = 0.0  # (4,): sums of box, cls and dfl loss with gains, and of the normaliser

    @torch.inference_mode()
    def update(self, network: nn.Module, batch: Batch, precision: Precision) -> list[Detections]:
        """Add a batch that is on the network's device, and return its detections in pixels of the original images."""
        assert batch.geometry is not None, "training batches have no geometry"
        predictions = predict_raw(network, batch.images, precision, self.loss.fused_kernels)
        sums = self.loss(predictions, batch.boxes_xyxy_px, batch.classes, batch.image_index)

        boxes_xyxy_px = decode_boxes(predictions, head_strides(network), self.loss.fused_kernels)
        found = detections(boxes_xyxy_px, predictions["scores"], self.nms)
        found = [
            Detections(to_original_px(image.boxes_xyxy_px, batch.geometry[i]), image.scores, image.classes)
            for i, image in enumerate(found)
        ]
        truth_xyxy_px = to_original_px(batch.boxes_xyxy_px, batch.geometry[batch.image_index])
        totals = self._totals + torch.cat([self.gains.apply(sums), sums.normaliser.view(1)])

        # Nothing was added if memory has run out above, so that the caller can repeat the batch in parts.
        self.metrics.update(found, truth_xyxy_px, batch.classes, batch.image_index)
        self._totals = totals
        return found

    def losses(self) -> dict[str, float]:
        """Box, cls and dfl loss of all images of all ranks, divided once by the sum of all normalisers."""
        totals = Ranks().sum(torch.as_tensor(self._totals).expand(4)).tolist()  # a rank without images has zeros
        normaliser = max(totals[3], MIN_NORMALISER)
        return {f"{name}_loss": total / normaliser for name, total in zip(("box", "cls", "dfl"), totals, strict=False)}

    def compute(self) -> DetectionResults:
        """The results of all images of all ranks. Every rank must call this."""
        self.metrics.process_group = Ranks().group
        with all_present():
            return self.metrics.compute()
