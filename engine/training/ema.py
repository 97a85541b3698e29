"""Exponential moving average of the weights: the network that is validated and saved as the result."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


@dataclass(frozen=True)
class EmaConfig:
    """How fast the weight average follows the weights."""

    decay: float = 0.9999
    """Decay per optimizer step after the ramp."""
    ramp_steps: float = 2000.0
    """The decay at update t is ``decay * (1 - exp(-t / ramp_steps))``, so that the average forgets early weights."""

    def __post_init__(self) -> None:
        """Raise a ValueError with key, value and rule if a value is out of range."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"model.ema.decay: {self.decay}: must be in [0, 1)")
        if self.ramp_steps <= 0:
            raise ValueError(f"model.ema.ramp_steps: {self.ramp_steps}: must be above 0")


class WeightAverage(nn.Module):
    """A copy of the network in evaluation mode that holds the weight average.

    The copy is never swapped with the trained network, so an error during validation cannot mix up their weights.
    Parameters and BatchNorm statistics are averaged in FP32; integer buffers keep their value.

    Memory: one more copy of the weights, 97 MiB for YOLO11l.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        super().__init__()
        self.config = config
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def decay_at(self, update: int) -> float:
        """The decay of update number ``update``, counted from 1."""
        return self.config.decay * (1 - math.exp(-update / self.config.ramp_steps))

    @torch.no_grad()
    def update(self, network: nn.Module, update: int, finite: Tensor) -> None:
        """Move the average towards the network's weights, unless ``finite`` (scalar bool, on the device) is false.

        ``average += (1 - decay) * (weights - average)`` is a step of gradient descent on half the squared distance.
        The fused SGD kernel takes it for all tensors at once and without temporary copies. Unlike the foreach
        operations, it can skip the update without asking the host.
        """
        sgd(
            _float_state(self.network),
            _float_state(network),
            [],
            fused=True,
            found_inf=(~finite).float(),
            lr=1 - self.decay_at(update),
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
        )


def _float_state(network: nn.Module) -> list[Tensor]:
    """Parameters and float buffers in a fixed order; ``state_dict`` takes three times as long."""
    return [
        tensor
        for module in network.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.is_floating_point()
    ]
