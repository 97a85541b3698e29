"""The YOLO11 networks of `ultralytics.nn`: the architecture only, without trainer, data code and pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch  # before ultralytics, which else limits torch to one CPU thread
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from models.detection.boxes import RawPredictions
from models.kernels.triton_support import fused_kernels_work

NetworkName = Literal["yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x"]
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def build_network(name: NetworkName, num_classes: int) -> DetectionModel:
    """Build a YOLO11 detector with random weights, in training mode and in channels_last, which is faster.

    The network maps images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32, to `RawPredictions` with D = 64 over
    the anchors of the strides 8, 16 and 32. In evaluation mode it returns a pair: see `raw_predictions`.

    Args:
        name: One of the five sizes.
        num_classes: Number of classes of the head, at least 1.
    """
    architecture = yaml_model_load(f"{name}.yaml") | {"nc": num_classes}  # the argument ``nc`` would print a message
    network = DetectionModel(architecture, verbose=False)
    for parameter_name, parameter in network.named_parameters():
        # All parameters train except the fixed projection 0..15 of the distribution focal loss.
        parameter.requires_grad = ".dfl." not in parameter_name
    return network.to(memory_format=torch.channels_last).train()


def raw_predictions(output: RawPredictions | tuple[Tensor, RawPredictions]) -> RawPredictions:
    """Raw predictions in the output of the network, which in evaluation mode is (decoded boxes, raw predictions)."""
    return output[1] if isinstance(output, tuple) else output


def network_input(images: Tensor, dtype: torch.dtype = torch.float32, fused_kernels: bool = False) -> Tensor:
    """Convert uint8 images (B, 3, H, W) to network input: ``dtype`` in [0, 1], channels_last as the network.

    All integers up to 256 are exact in fp16 and bf16, so conversion before division loses no accuracy and halves the
    memory. With ``fused_kernels``, one Triton kernel converts the images where Triton works.
    """
    if fused_kernels and fused_kernels_work(images):
        from models.kernels import fused_copies  # imports Triton

        return fused_copies.scale_bytes(images, dtype)
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


def detection_head(network: DetectionModel) -> Detect:
    """Return the last layer of the network, which makes the raw predictions."""
    return network.model[-1]


def head_strides(network: nn.Module) -> list[int]:
    """Distance between neighboring anchors of each feature map, in pixels: [8, 16, 32]."""
    return [int(stride) for stride in detection_head(network).stride.tolist()]


def batch_norms(network: nn.Module) -> Iterator[nn.Module]:
    """Yield all BatchNorm layers of the network."""
    return (module for module in network.modules() if isinstance(module, BATCH_NORMS))


def freeze_batch_norms(modules: Iterable[nn.Module]) -> None:
    """Normalize with the running statistics and keep these fixed; scale and shift still train."""
    for module in modules:
        module.eval()


def freeze_layers(network: DetectionModel, num_layers: int) -> None:
    """Freeze the parameters and batch statistics of the first ``num_layers`` top-level layers.

    Raises:
        ValueError: If ``num_layers`` is negative, or the network has no more layers than that.
    """
    if not 0 <= num_layers < len(network.model):
        raise ValueError(f"model.freeze_layers: {num_layers}: must be between 0 and {len(network.model) - 1}")
    for layer in network.model[:num_layers]:
        layer.requires_grad_(False)
        freeze_batch_norms(batch_norms(layer))
