"""Which kernels PyTorch may choose: switches of the whole process, set once before training."""

from __future__ import annotations

import torch

from engine.precision import Precision


def set_backends(precision: Precision, deterministic: bool = False) -> None:
    """Choose fast kernels.

    TF32 multiplies with 10 bits of mantissa and adds in FP32: several times faster than FP32 on NVIDIA's Ampere and
    newer. It concerns ``fp32`` only, where it is switched on; the products of ``bf16`` and ``fp16`` are short anyway.

    cuDNN's benchmark tries the algorithms for each new shape of a convolution, and remembers the fastest. Which one
    that is may differ from run to run, and so may the last bits of the result; trying takes workspace memory.

    Args:
        precision: Of the forward and backward passes.
        deterministic: Give up the search, and TF32, for results that repeat on the same machine.
    """
    allow_tf32 = precision == "fp32" and not deterministic
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
