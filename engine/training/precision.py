"""Numeric precision: the autocast context, the loss scaler, and the check of what must stay FP32.

``bf16`` and ``fp16`` halve the activations, which are over 95 % of the training memory. Parameters, gradients and both
AdamW moments are FP32 in every precision (0.38 GiB for YOLO11l), as are box decoding, assignment and loss.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from engine.errors import ConfigError
from models.precision import BF16_CAPABILITY

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST_DTYPE: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FIRST_SCALE = 2.0**10
"""First fp16 loss scale. With torch's default of 2**16, the first nine steps of a new YOLO11l overflow."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the network runs in training and validation."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPE[precision])


def build_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler that fp16 needs because of its narrow range; disabled for fp32 and bf16."""
    return torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=precision == "fp16")


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that the device does not support.

    Raises:
        ConfigError: fp16 on a CPU, or bf16 on a GPU that only emulates it (before NVIDIA's Ampere).
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("model.precision: fp16: a CPU has no fast fp16. Use bf16 or fp32.")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"model.precision: bf16: {name} has no bf16 units. Use fp16.")


def assert_fp32(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Assert that parameters and optimizer states are FP32, as in every precision.

    Raises:
        AssertionError: With the name of the first tensor that is not.
    """
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32, f"parameter {name} is {parameter.dtype}, not float32"
    for state in optimizer.state.values():
        for key, value in state.items():
            is_fp32 = not torch.is_tensor(value) or value.dtype == torch.float32
            assert is_fp32, f"optimizer state {key} is {value.dtype}, not float32"
