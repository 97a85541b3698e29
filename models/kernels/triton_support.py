"""Decides whether Triton kernels run on a device. Each caller is told separately whether to use them.

Triton kernels replace operations that mostly move memory: see `fused_norm_act`, `fused_copies`, `fused_pooling`,
`fused_boxes` and `fused_color` in this folder. Where Triton does not work, operations of PyTorch do the same.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def fused_kernels_work(x: Tensor) -> bool:
    """Whether Triton kernels run on the device of ``x``."""
    return x.is_cuda and _work_on(x.device)


@cache
def _work_on(device: torch.device) -> bool:
    """Whether Triton is installed and compiles kernels, for which it needs a C compiler on this machine."""
    if importlib.util.find_spec("triton") is None:
        return False
    from models.kernels import fused_norm_act

    try:
        x, channel = torch.ones(1, 1, 4, 4, device=device), torch.ones(1, device=device)
        out, mean, variance = fused_norm_act.normalise_by_batch(x, channel, channel, None, 0.0, 1.0, True)
        fused_norm_act.backward(out, x, channel, channel, mean, variance, True, True)
    except Exception as error:  # Triton and its compilers raise many types
        log.warning("model.fused_kernels: Triton does not work here (%s): PyTorch's own kernels are used", error)
        return False
    return True
