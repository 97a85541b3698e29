"""Bytes of a process on a GPU that are not tensors of a training step, so no simulation sees them.

Measured on an H200 with torch 2.11 (benchmarks/results/gpu_steps_*.json), assumed elsewhere:

* Workspaces of cuBLAS: torch allocates them for each of its two threads (forward and backward) and again for captured
  graphs. Convolutions in channels_last need almost none.
* Gaps between the allocator's blocks, and what it caches: they grow with the images.
* CUDA's context, and the kernels and libraries that are loaded when training begins.
"""

from __future__ import annotations

import torch

from engine.memory.probe import CUDA_CONTEXT_BYTES, measured_context_bytes
from engine.memory.units import MIB

CUBLAS_WORKSPACE_BYTES = 8_519_680
"""Size of one workspace, as torch chooses it before Hopper; later cards have `HOPPER_WORKSPACE_BYTES`."""
HOPPER_WORKSPACE_BYTES = 32 * MIB
NUM_WORKSPACES = 4
GAPS_BYTES = 300 * MIB
GAPS_BYTES_PER_PIXEL = 35
"""The part of the gaps in proportion to the pixels of a micro-batch; `GAPS_BYTES` is the fixed part."""
MODULES_BYTES = 256 * MIB
"""Kernels and libraries that are loaded into the context after it was created."""


def beside_tensors(num_pixels: int, workspace_bytes: int, context_bytes: int) -> dict[str, int]:
    """Bytes by component, given the pixels of all images of a micro-batch and the results of `of_this_machine`."""
    gaps = GAPS_BYTES + GAPS_BYTES_PER_PIXEL * num_pixels
    return {"workspaces": NUM_WORKSPACES * workspace_bytes, "allocator_gaps": gaps, "cuda_context": context_bytes}


def of_this_machine() -> tuple[int, int]:
    """Bytes of one cuBLAS workspace and of CUDA's context; without a GPU, those of a usual consumer card."""
    if not torch.cuda.is_available():
        return CUBLAS_WORKSPACE_BYTES, CUDA_CONTEXT_BYTES
    device = torch.device("cuda", torch.cuda.current_device())
    is_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return HOPPER_WORKSPACE_BYTES if is_hopper else CUBLAS_WORKSPACE_BYTES, final_context_bytes(device)


def final_context_bytes(device: torch.device) -> int:
    """Size of CUDA's context in this process once training runs; measured if the driver reports it."""
    measured = measured_context_bytes(device)
    return CUDA_CONTEXT_BYTES if measured is None else measured + MODULES_BYTES
