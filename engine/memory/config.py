"""The ``memory`` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnSpill = Literal["warn", "adapt", "stop"]


@dataclass(frozen=True)
class MemoryConfig:
    """How much VRAM training may use, and what happens at the limit."""

    budget: str | float = "auto"
    """Most VRAM that training may use, CUDA's own included: ``auto`` (what the device has free at the start,
    less 512 MiB), a size such as ``14GiB``, or a fraction of the device's memory such as ``0.9``."""
    on_spill: OnSpill = "warn"
    """When the driver serves VRAM from system RAM, many times slower: ``warn`` says so, ``adapt`` also takes
    smaller micro-batches from then on, ``stop`` ends the run."""
    expandable_segments: bool = True
    """Let the allocator grow its segments in place: less memory lost to gaps. On native Linux only: drivers
    of Windows and WSL lack the calls, or fail in them."""
    snapshot_on_oom: bool = False
    """Record allocations, and leave a file for https://pytorch.org/memory_viz when memory runs out. Costs RAM
    and some speed."""
