"""The YOLO11 networks, as `ultralytics.nn` defines them: architecture only, no trainer, no data code, no pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch  # before ultralytics, which otherwise limits torch to one CPU thread
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from models.detection.boxes import RawPredictions
from models.kernels.switch import fused_kernels_work

NetworkName = Literal["yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x"]
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def build_network(name: NetworkName, num_classes: int) -> DetectionModel:
    """A randomly initialized YOLO11 detector in training mode, its weights in channels_last, which is faster.

    In training mode it maps images (B, 3, H, W), RGB in [0, 1], H and W multiples of 32, to the raw predictions
    ``{"boxes": (B, 64, A), "scores": (B, C, A), "feats": [3 feature maps]}`` over the A anchors of the strides 8, 16
    and 32. In evaluation mode it returns a pair whose second item is that dictionary: see `raw_predictions`.

    Args:
        name: Which of the five sizes.
        num_classes: Classes that the head tells apart, at least 1.
    """
    architecture = yaml_model_load(f"{name}.yaml") | {"nc": num_classes}  # given as ``nc`` it would be announced
    network = DetectionModel(architecture, verbose=False)
    for parameter_name, parameter in network.named_parameters():
        # The fixed projection 0..15 of the distribution focal loss; every other parameter trains.
        parameter.requires_grad = ".dfl." not in parameter_name
    return network.to(memory_format=torch.channels_last).train()


def raw_predictions(output: RawPredictions | tuple[Tensor, RawPredictions]) -> RawPredictions:
    """The raw prediction dictionary out of what the network returned, in either mode."""
    return output[1] if isinstance(output, tuple) else output


def network_input(images: Tensor, dtype: torch.dtype = torch.float32, fused_kernels: bool = False) -> Tensor:
    """Bytes to network input: uint8 (B, 3, H, W) in 0..255 to ``dtype`` in [0, 1], channels_last as the network is.

    Every integer up to 256 is exact in fp16 and bf16, so converting first costs no accuracy and half the memory. With
    ``fused_kernels`` one Triton kernel does it, where Triton works.
    """
    if fused_kernels and fused_kernels_work(images):
        from models.kernels import fused_copies  # only where there is Triton

        return fused_copies.scale_bytes(images, dtype)
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


def detection_head(network: DetectionModel) -> Detect:
    """The last layer of the network."""
    return network.model[-1]


def head_strides(network: nn.Module) -> list[int]:
    """Pixels per anchor step of each head level: [8, 16, 32]."""
    return [int(stride) for stride in detection_head(network).stride.tolist()]


def batch_norms(network: nn.Module) -> Iterator[nn.Module]:
    """Every batch normalisation layer of the network."""
    return (module for module in network.modules() if isinstance(module, BATCH_NORMS))


def freeze_batch_norms(modules: Iterable[nn.Module]) -> None:
    """Normalise with the running statistics and leave these alone; scale and shift still train."""
    for module in modules:
        module.eval()


def freeze_layers(network: DetectionModel, num_layers: int) -> None:
    """Stop the training of the first ``num_layers`` top-level layers: parameters and batch statistics.

    Raises:
        ValueError: If the network has fewer layers than that, or the number is negative.
    """
    if not 0 <= num_layers < len(network.model):
        raise ValueError(f"model.freeze_layers: {num_layers}: must be between 0 and {len(network.model) - 1}")
    for layer in network.model[:num_layers]:
        layer.requires_grad_(False)
        freeze_batch_norms(batch_norms(layer))
