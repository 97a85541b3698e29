"""The optimizer: AdamW or SGD in three parameter groups, fused, and the clipping of the window's gradient.

Its state is made with it, not in its first step as torch would. So the first step needs no more memory than the others,
and skipping it leaves zeros behind: fused SGD would leave its momentum uninitialized.
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
    """How the weights move, given a gradient."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    lr: float = 0.001
    """Learning rate after warm-up. For SGD, 0.01 is usual."""
    momentum: float = 0.937
    """Nesterov momentum of SGD, 0 for none; first beta of AdamW."""
    beta2: float = 0.999
    """Second beta of AdamW."""
    weight_decay: float = 0.0005
    """Weight decay of convolution weights at `nominal_batch_size`; biases and BatchNorm have none."""
    nominal_batch_size: int = 64
    """Weight decay is multiplied by ``data.batch_size / nominal_batch_size``: smaller batches step more often."""
    max_grad_norm: float = 10.0
    """L2 norm to which the window's gradient is clipped; 0 switches clipping off."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Naming the key, the value and the rule.
        """
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
    """Trainable parameters by treatment: ``decay`` (weights), ``norm`` (BatchNorm scales) and ``bias``."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "norm": [], "bias": []}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_norm = isinstance(module, BATCH_NORMS)
            groups["bias" if "bias" in name else "norm" if is_norm else "decay"].append(parameter)
    return groups


def build_optimizer(network: nn.Module, config: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """The configured optimizer, fused: one kernel for all parameters, and a skipped step costs no host sync.

    Args:
        network: On its device. Its trainable parameters form the groups ``decay``, ``norm`` and ``bias``.
        config: Rates and decay.
        batch_size: Effective batch, for the scaling of the weight decay.

    Memory: the optimizer's state, one (SGD) or two (AdamW) more copies of the trainable weights.
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
    optimizer.register_load_state_dict_post_hook(_make_state)  # a checkpoint from before the first step has none
    return optimizer


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter that has no state the one of a run's beginning: zeros."""
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
    """Scale the gradients in place so that their joint L2 norm is at most ``max_norm`` (0: leave them).

    Returns:
        Scalar on the device: the norm before clipping; inf or NaN when any element is.
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def step_if(finite: Tensor, optimizer: Any, take_step: Callable[[], object]) -> None:
    """Take the optimizer's step on the device only where ``finite`` (a scalar bool there) is true.

    Fused optimizers read ``found_inf`` inside their kernel, so neither the decision nor a skip waits for the host.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = (~finite).float()
    try:
        take_step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf
