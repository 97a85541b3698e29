"""A program: compiles every Triton kernel, as its callers call it, for GPUs that need not be there; prints their names.

Its arguments are compute capabilities: 75 for 7.5.

Triton's interpreter, in which the other tests run the kernels, takes much that its compiler refuses.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from models.kernels import fused_copies, fused_norm_act, fused_pooling
from models.kernels.fused_boxes import decode
from models.kernels.fused_color import shift_hsv

TYPES = {torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int64: "*i64"}
compiled: set[str] = set()
capabilities = [int(argument) for argument in sys.argv[1:]]


def compile_instead(kernel: JITFunction, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
    """In the place of a launch."""
    options = {"num_warps": kwargs.pop("num_warps", 4)}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    constants = {
        name for name, parameter in zip(kernel.arg_names, kernel.params, strict=True) if parameter.is_constexpr
    }
    signature = {name: "constexpr" if name in constants else _type(value) for name, value in values.items()}
    places = {(kernel.arg_names.index(name),): values[name] for name in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    for capability in capabilities:
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
    compiled.add(kernel.__name__)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def main() -> None:
    """All of them."""
    warnings.simplefilter("ignore")  # what the next version of Triton will do
    JITFunction.run = compile_instead
    x, channel = torch.ones(2, 64, 20, 20, dtype=torch.float16), torch.ones(64)
    running = channel, channel, torch.zeros((), dtype=torch.int64)
    fused_norm_act.normalise_by_batch(x, channel, channel, running, 0.1, 1e-3, True)
    fused_norm_act.normalise_activate(x[:, :, :3], channel, channel, channel, channel, False, x[:, :, :3])
    fused_norm_act.backward(x, x, channel, channel, channel, channel, True, True)
    fused_norm_act.backward(x, x, channel, channel, channel, channel, True, False)
    fused_copies.upsample(x, 2)
    fused_copies.scale_bytes(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), x.dtype)
    fused_pooling.max_pool(x, 5)
    fused_pooling.max_pool_backward(x, x, 5)
    decode(torch.ones(2, 64, 300, dtype=x.dtype), torch.ones(300, 2).T, torch.ones(300))
    shift_hsv(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3))
    print(*sorted(compiled))


main()
