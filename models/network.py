"""Detectors of `ultralytics.nn`: the networks only, without trainer, data code and pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy

import torch  # before ultralytics, which else limits torch to one CPU thread
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from models.architecture import CLASS_WIDTH, Architecture, ArchitectureError, check_architecture, read_architecture
from models.detection.boxes import RawPredictions
from models.kernels.triton_support import fused_kernels_work

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What `ultralytics` and torch raise if layers do not fit together."""
MAX_STEP_PX = 128


def build_network(network: str | Architecture, num_classes: int) -> DetectionModel:
    """Build a detector with random weights, in training mode and in channels_last, which is faster.

    The network maps images (B, 3, H, W), RGB in [0, 1], H and W multiples of the largest stride, to `RawPredictions`
    over the anchors of all levels. In evaluation mode it returns a pair: see `raw_predictions`. Its attribute ``yaml``
    is its architecture.

    Args:
        network: An architecture, or what `models.architecture.read_architecture` takes.
        num_classes: Number of classes of the head, at least 1.

    Raises:
        ArchitectureError: If no such network exists, it is not a detector, or its layers do not fit together.
    """
    if isinstance(network, str):
        network = read_architecture(network)
    else:
        check_architecture(network)
    architecture = deepcopy(network)
    # As an argument, the number of classes would print a message. The width of the class branches follows from it.
    architecture["nc"] = architecture.get(CLASS_WIDTH, num_classes)
    try:
        detector = DetectionModel(architecture, verbose=False)
        _set_classes(detector, num_classes)
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        name = architecture.get("yaml_file", "the architecture")
        raise ArchitectureError(f"{name}: cannot be built ({type(error).__name__}: {reason})") from error
    strides = detector.stride.tolist()
    if not all(stride.is_integer() for stride in strides):
        raise ArchitectureError(f"its feature maps have the strides {strides}: they must be whole numbers of pixels")
    for parameter_name, parameter in detector.named_parameters():
        # All parameters train except the fixed projection 0..R-1 of the distribution focal loss.
        parameter.requires_grad = ".dfl." not in parameter_name
    return detector.to(memory_format=torch.channels_last).train()


def _set_classes(network: DetectionModel, num_classes: int) -> None:
    """Replace the last layers of the class branches if the network was built for another number of classes."""
    head = detection_head(network)
    if head.nc == num_classes:
        return
    for branch in head.cv3:
        branch[-1] = nn.Conv2d(branch[-1].in_channels, num_classes, 1)
    head.nc, head.no = num_classes, num_classes + 4 * head.reg_max
    head.bias_init()
    network.yaml["nc"] = num_classes
    network.names = {number: str(number) for number in range(num_classes)}


def class_width(network: DetectionModel) -> int:
    """Inner channels of the class branches."""
    width: int = detection_head(network).cv3[0][-1].in_channels
    return width


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
    """Distance between neighboring anchors of each level, in pixels: [8, 16, 32] for most networks."""
    return [int(stride) for stride in detection_head(network).stride.tolist()]


def input_step_px(network: DetectionModel) -> int:
    """Pixels that both sides of an image must be a multiple of: the largest stride of the head.

    It is more where the network enlarges a map coarser than those of its head, and joins it with a finer one.

    Args:
        network: As `build_network` returns it; left as it is.

    Raises:
        ArchitectureError: If the network does not accept every image whose sides are multiples of `MAX_STEP_PX`.
    """
    step_px, head = max(head_strides(network)), detection_head(network)
    network.eval()
    head.training = True  # which keeps no anchors
    try:
        while not _takes_sides(network, 3 * step_px, 5 * step_px):  # odd multiples: maps of odd sides do not double
            step_px *= 2
            if step_px > MAX_STEP_PX:
                sides = f"sides are multiples of {MAX_STEP_PX} pixels"
                raise ArchitectureError(f"it does not accept every image whose {sides}")
    finally:
        network.train()
    return step_px


def _takes_sides(network: DetectionModel, height_px: int, width_px: int) -> bool:
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, height_px, width_px))
    except RuntimeError:  # maps whose sides differ
        return False
    return True


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
