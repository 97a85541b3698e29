"""The optimizer, AdamW or SGD in three parameter groups, and the clipping of the window's gradient.

The optimizer's state is created together with it; torch would create it in the first step. Therefore the first step
needs no more memory than the others. A skipped first step leaves zeros; fused SGD would leave uninitialized momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.network import BATCH_NORMS


@dataclass(frozen=True)
class OptimizerConfig:
    """How the optimizer changes the weights."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    lr: float = 0.001
    """Learning rate after warm-up. 0.01 is usual for SGD."""
    momentum: float = 0.937
    """Nesterov momentum of SGD (0: none), or first beta of AdamW."""
    beta2: float = 0.999
    """Second beta of AdamW."""
    weight_decay: float = 0.0005
    """Weight decay of convolution weights at `nominal_batch_size`. Biases and BatchNorm have none."""
    nominal_batch_size: int = 64
    """Weight decay is multiplied by ``data.batch_size / nominal_batch_size``, because small batches take more steps."""
    max_grad_norm: float = 10.0
    """Largest L2 norm of a window's gradient; 0 switches clipping off."""

    def __post_init__(self) -> None:
        """Raise a ValueError with key, value and rule if a value is out of range."""
        for key in ("lr", "nominal_batch_size"):
            if getattr(self, key) <= 0:
                raise ValueError(f"model.optimizer.{key}: {getattr(self, key)}: must be above 0")
        for key in ("weight_decay", "max_grad_norm"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.optimizer.{key}: {getattr(self, key)}: must not be negative")
        for key in ("momentum", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"model.optimizer.{key}: {getattr(self, key)}: must be in [0, 1)")


def parameter_groups(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by group: ``decay`` (weights), ``norm`` (BatchNorm scales) and ``bias``."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "norm": [], "bias": []}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_norm = isinstance(module, BATCH_NORMS)
            groups["bias" if "bias" in name else "norm" if is_norm else "decay"].append(parameter)
    return groups


def build_optimizer(network: nn.Module, config: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """Build the fused optimizer: one kernel changes all parameters, and a skipped step needs no host sync.

    The network is on its device. Its trainable parameters form the groups ``decay``, ``norm`` and ``bias``. The weight
    decay depends on ``batch_size``, the effective batch.

    Memory: one (SGD) or two (AdamW) more copies of the trainable weights.
    """
    decay = config.weight_decay * batch_size / config.nominal_batch_size
    groups = [
        {"params": parameters, "name": name, "weight_decay": decay if name == "decay" else 0.0}
        for name, parameters in parameter_groups(network).items()
        if parameters
    ]
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        nesterov = config.momentum > 0  # torch refuses it without momentum
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)
    _make_state(optimizer)
    optimizer.register_load_state_dict_post_hook(_make_state)  # a checkpoint without state
    return optimizer


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Set missing optimizer states to 0, their value before the first step."""
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for name in ("momentum_buffer",) if is_sgd else ("exp_avg", "exp_avg_sq"):
                if state.get(name) is None:
                    state[name] = torch.zeros_like(parameter)
            if not is_sgd and "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def clip_gradients(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients in place so that their joint L2 norm is at most ``max_norm`` (0: do not scale).

    Returns:
        Scalar on the device: the norm before clipping; inf or NaN if any element is.
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def step_if(finite: Tensor, optimizer: Any, take_step: Callable[[], object]) -> None:
    """Take the optimizer's step if ``finite`` (scalar bool on the device) is true.

    Fused optimizers read ``found_inf`` inside their kernel, so the host does not wait for the device.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = (~finite).float()
    try:
        take_step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf
