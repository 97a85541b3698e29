"""The dtype and autocast of computations in FP32, and the GPUs that compute in bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

BF16_CAPABILITY = (8, 0)
"""CUDA compute capability of NVIDIA Ampere; older GPUs only emulate bf16."""


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of computations on predictions of ``dtype``: FP64 for FP64, else FP32."""
    return torch.promote_types(dtype, torch.float32)


def autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    """Context that switches autocast off on ``device``; does nothing on `meta`, for which torch has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
