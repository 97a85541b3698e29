"""Whether kernels written in Triton work on this machine. Whether they are wanted, each caller is told.

They serve what does little but move memory: see `models.kernels.fused_norm_act`, `models.kernels.fused_copies`,
`models.kernels.fused_pooling`, `models.kernels.fused_boxes` and `models.kernels.fused_color`. Each has a counterpart of
PyTorch's own operations, which is taken otherwise.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def fused_kernels_work(x: Tensor) -> bool:
    """Whether they work on the device of ``x``."""
    return x.is_cuda and _work_on(x.device)


@cache
def _work_on(device: torch.device) -> bool:
    """Whether Triton is installed and works: it compiles its kernels with this machine's C compiler."""
    if importlib.util.find_spec("triton") is None:
        return False
    from models.kernels import fused_norm_act

    try:
        x, channel = torch.ones(1, 1, 4, 4, device=device), torch.ones(1, device=device)
        out, mean, variance = fused_norm_act.normalise_by_batch(x, channel, channel, None, 0.0, 1.0, True)
        fused_norm_act.backward(out, x, channel, channel, mean, variance, True, True)
    except Exception as error:  # Triton's compilers fail in many ways
        log.warning("model.fused_kernels: Triton does not work here (%s): PyTorch's own kernels are used", error)
        return False
    return True
