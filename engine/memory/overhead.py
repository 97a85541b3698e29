"""What a process holds on a GPU beside the tensors of a training step, which no simulation sees.

Measured on an H200 with torch 2.11 (benchmarks/results/gpu_steps_*.json), elsewhere an assumption:

* cuBLAS's workspaces, which torch allocates for each of its two threads (forward and backward) and once more for
  recordings. Convolutions in channels_last take none worth counting.
* Gaps between the allocator's blocks, and what it keeps cached between two uses.
* CUDA's context, and the kernels and libraries that are loaded while training begins.
"""

from __future__ import annotations

import torch

from engine.memory.probe import CUDA_CONTEXT_BYTES, measured_context_bytes
from engine.memory.units import MIB

CUBLAS_WORKSPACE_BYTES = 8_519_680
"""Of one workspace, as torch chooses it; from Hopper on it is `HOPPER_WORKSPACE_BYTES`."""
HOPPER_WORKSPACE_BYTES = 32 * MIB
NUM_WORKSPACES = 4
GAPS_BYTES = 256 * MIB
GAPS_SHARE = 0.03
"""The gaps: a fixed part, and one in proportion to what is allocated."""
MODULES_BYTES = 256 * MIB
"""What the context grows by after it has been made: kernels and libraries."""


def beside_tensors(tensor_bytes: int) -> dict[str, int]:
    """Bytes by component, for a step whose tensors take ``tensor_bytes`` at their peak; of the GPU here, if any."""
    workspace_bytes, context_bytes = CUBLAS_WORKSPACE_BYTES, CUDA_CONTEXT_BYTES
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        context_bytes = final_context_bytes(device)
        if torch.cuda.get_device_capability(device) >= (9, 0):
            workspace_bytes = HOPPER_WORKSPACE_BYTES
    workspaces = NUM_WORKSPACES * workspace_bytes
    gaps = GAPS_BYTES + round(GAPS_SHARE * (tensor_bytes + workspaces))
    return {"workspaces": workspaces, "allocator_gaps": gaps, "cuda_context": context_bytes}


def final_context_bytes(device: torch.device) -> int:
    """What CUDA will hold in this process once training runs: measured, where the driver tells."""
    measured = measured_context_bytes(device)
    return CUDA_CONTEXT_BYTES if measured is None else measured + MODULES_BYTES
