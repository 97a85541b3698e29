"""Where the networks and their loss work in FP32, whatever autocast says; and which GPUs have bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

BF16_CAPABILITY = (8, 0)
"""CUDA's compute capability of NVIDIA's Ampere; GPUs before it only emulate bf16."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which predictions of ``dtype`` are worked on: FP32, or FP64 for FP64."""
    return torch.promote_types(dtype, torch.float32)


def autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on ``device``; nothing to do on `meta`, where torch has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
