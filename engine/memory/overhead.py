"""What a process holds on a GPU beside the tensors of a training step, which no simulation sees.

Measured on an H200 with torch 2.11 (benchmarks/results/gpu_steps_*.json), elsewhere an assumption:

* cuBLAS's workspaces, which torch allocates for each of its two threads (forward and backward) and once more for
  captured graphs. Convolutions in channels_last take none worth counting.
* Gaps between the allocator's blocks, and what it keeps cached between two uses: they grow with the images.
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
GAPS_BYTES = 300 * MIB
GAPS_BYTES_PER_PIXEL = 35
"""The gaps: a fixed part, and one in proportion to the pixels of a micro-batch."""
MODULES_BYTES = 256 * MIB
"""What the context grows by after it has been made: kernels and libraries."""


def beside_tensors(num_pixels: int, workspace_bytes: int, context_bytes: int) -> dict[str, int]:
    """Bytes by component.

    Args:
        num_pixels: Of all images of a micro-batch.
        workspace_bytes: Of one workspace of cuBLAS.
        context_bytes: Of CUDA, once training runs.
    """
    gaps = GAPS_BYTES + GAPS_BYTES_PER_PIXEL * num_pixels
    return {"workspaces": NUM_WORKSPACES * workspace_bytes, "allocator_gaps": gaps, "cuda_context": context_bytes}


def of_this_machine() -> tuple[int, int]:
    """``workspace_bytes`` and ``context_bytes`` of the GPU here; without one, of a usual consumer card."""
    if not torch.cuda.is_available():
        return CUBLAS_WORKSPACE_BYTES, CUDA_CONTEXT_BYTES
    device = torch.device("cuda", torch.cuda.current_device())
    is_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return HOPPER_WORKSPACE_BYTES if is_hopper else CUBLAS_WORKSPACE_BYTES, final_context_bytes(device)


def final_context_bytes(device: torch.device) -> int:
    """What CUDA will hold in this process once training runs: measured, where the driver tells."""
    measured = measured_context_bytes(device)
    return CUDA_CONTEXT_BYTES if measured is None else measured + MODULES_BYTES
