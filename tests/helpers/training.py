"""Small windows, networks and training steps for the engine's tests."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.training.config import ModelConfig
from engine.training.ema import EmaConfig, WeightAverage
from engine.training.nonfinite import NonFiniteGuard
from engine.training.optim import OptimizerConfig, build_optimizer
from engine.training.out_of_memory import MemorySettings, RecoveryHooks
from engine.training.precision import Precision
from engine.training.schedule import Schedule, ScheduleConfig
from engine.training.step import TrainingStep
from models.detection.loss import DetectionLoss
from models.network import batch_norms, build_network, freeze_batch_norms, head_strides

IMAGE_SIZE = 64
NUM_CLASSES = 5


def make_window(object_counts: list[int], seed: int = 0, image_size: int = IMAGE_SIZE) -> Batch:
    """Noise images with random boxes: ``object_counts[i]`` of them in image i."""
    generator = torch.Generator().manual_seed(seed)
    num_images, num_boxes = len(object_counts), sum(object_counts)
    centers = torch.rand(num_boxes, 2, generator=generator) * image_size
    sizes = (torch.rand(num_boxes, 2, generator=generator) * 0.4 + 0.1) * image_size
    return Batch(
        images=torch.randint(0, 256, (num_images, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        boxes_xyxy_px=torch.cat([centers - sizes / 2, centers + sizes / 2], 1).clamp(0, image_size),
        classes=torch.randint(0, NUM_CLASSES, (num_boxes,), generator=generator),
        image_index=torch.repeat_interleave(torch.arange(num_images), torch.tensor(object_counts)),
        names=[f"image{i}.jpg" for i in range(num_images)],
    )


def make_network(seed: int = 0, dtype: torch.dtype = torch.float32, frozen: bool = True) -> nn.Module:
    """A random yolo11n; ``frozen`` BatchNorm normalises with the initial statistics, mean 0 and variance 1."""
    torch.manual_seed(seed)
    network = build_network("yolo11n", NUM_CLASSES)
    if frozen:
        freeze_batch_norms(batch_norms(network))
    return network.to(dtype)


def make_lively_network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random yolo11n with frozen BatchNorm whose statistics fit: signals and gradients reach every layer.

    Its gradients are badly conditioned (fp32 rounding alone makes 1e-5), so exactness is a matter for fp64.
    """
    network = make_network(seed, frozen=False)
    norms = list(batch_norms(network))
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        network(make_window([1] * 8, seed=99).images.float() / 255)
        for norm in norms:
            norm.momentum = 0.03
    freeze_batch_norms(norms)
    return network.to(dtype)


def make_step(
    network: nn.Module,
    micro_batch_size: int = 4,
    max_grad_norm: float = 10.0,
    precision: Precision = "fp32",
    cuda_graphs: bool = False,
    hooks: RecoveryHooks = RecoveryHooks(),  # noqa: B008  frozen
    **changes: object,
) -> TrainingStep:
    """A training step in FP32 (or the network's own dtype) with AdamW and a short schedule."""
    optimizer = OptimizerConfig(lr=1e-3, max_grad_norm=max_grad_norm)
    parts = {
        "network": network,
        "loss": DetectionLoss(head_strides(network)),
        "config": ModelConfig(precision=precision, cuda_graphs=cuda_graphs, optimizer=optimizer),
        "optimizer": build_optimizer(network, optimizer, batch_size=16),
        "schedule": Schedule(ScheduleConfig(warmup_epochs=0), max_epochs=10, steps_per_epoch=10),
        "ema": WeightAverage(network, EmaConfig()),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "guard": NonFiniteGuard(max_in_a_row=5),
        "memory": MemorySettings(network, batch_size=16, micro_batch_size=micro_batch_size, hooks=hooks),
    }
    parts |= changes
    return TrainingStep(**{"take_step": parts["optimizer"].step, **parts})


def flat_gradient(network: nn.Module) -> Tensor:
    """All gradients of a network in one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def flat_weights(network: nn.Module) -> Tensor:
    """A copy of all parameters of a network in one vector."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of what is expected."""
    return float((actual - expected).norm() / expected.norm())


def copy_of(network: nn.Module) -> nn.Module:
    """An independent copy, modes included."""
    return copy.deepcopy(network)
