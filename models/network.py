"""Detectors of `ultralytics.nn`: architecture only, no trainer, no data code, no pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy

import torch  # before ultralytics, which otherwise limits torch to one CPU thread
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from models.architecture import CLASS_WIDTH, Architecture, ArchitectureError, check_architecture, read_architecture
from models.kernels.switch import fused_kernels_work

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What `ultralytics` and torch raise of layers that do not go together."""
MAX_STEP_PX = 128


def build_network(network: str | Architecture, num_classes: int) -> DetectionModel:
    """A randomly initialized detector in training mode, its weights in channels_last, which is faster.

    In training mode it maps images (B, 3, H, W), RGB in [0, 1], H and W multiples of the largest stride, to the raw
    predictions ``{"boxes": (B, 4 R, A), "scores": (B, C, A), "feats": [a feature map for each level]}`` over the A
    anchors of all levels, with R bins of the distribution over distances. In evaluation mode it returns a pair whose
    second item is that dictionary: see `raw_predictions`. Its attribute ``yaml`` is its architecture.

    Args:
        network: What `models.architecture.read_architecture` takes or returns.
        num_classes: Classes that the head tells apart, at least 1.

    Raises:
        ArchitectureError: If there is no such network, it is no detector, or its layers do not go together.
    """
    if isinstance(network, str):
        network = read_architecture(network)
    else:
        check_architecture(network)
    architecture = deepcopy(network)
    # Ultralytics announces a number of classes that is an argument. The inner width of the class branches follows it.
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
        # The fixed projection 0..R-1 of the distribution focal loss; every other parameter trains.
        parameter.requires_grad = ".dfl." not in parameter_name
    return detector.to(memory_format=torch.channels_last).train()


def _set_classes(network: DetectionModel, num_classes: int) -> None:
    """Let the last layers of the class branches tell ``num_classes`` apart, whatever the network was built for."""
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
    return detection_head(network).cv3[0][-1].in_channels


def raw_predictions(output: dict | tuple) -> dict:
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
    """Pixels per cell of each level of the head, finest first: [8, 16, 32] for most networks."""
    return [int(stride) for stride in detection_head(network).stride.tolist()]


def input_step_px(network: DetectionModel) -> int:
    """Pixels that both sides of an image must be a multiple of: the largest stride of the head.

    It is more where the network enlarges a map coarser than those of its head, and joins it with a finer one.

    Args:
        network: As `build_network` returns it; left as it is.

    Raises:
        ArchitectureError: If the network takes no images whose sides are such a multiple.
    """
    step_px, head = max(head_strides(network)), detection_head(network)
    network.eval()
    head.training = True  # which keeps no anchors
    try:
        while not _takes_sides(network, 3 * step_px, 5 * step_px):  # odd multiples: maps of odd sides do not double
            step_px *= 2
            if step_px > MAX_STEP_PX:
                raise ArchitectureError(f"it takes no images whose sides are any multiple of {MAX_STEP_PX} pixels")
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
