"""The ``memory`` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnSpill = Literal["warn", "adapt", "stop"]


@dataclass(frozen=True)
class MemoryConfig:
    """How much VRAM training may use, and what happens at the limit."""

    budget: str | float = "auto"
    """Most VRAM that training may use, CUDA's context included: ``auto`` (what the device has free at the start, less
    512 MiB), a size such as ``14GiB``, or a fraction of the device's memory such as ``0.9``."""
    on_spill: OnSpill = "warn"
    """Reaction to a spill of VRAM into system RAM, which makes training many times slower: ``warn`` prints a warning,
    ``adapt`` also lowers the recompute level or the micro-batch, ``stop`` ends the run."""
    expandable_segments: bool = True
    """Let the allocator grow its segments in place, which leaves smaller gaps. Native Linux only: drivers of Windows
    and WSL do not support it."""
    snapshot_on_oom: bool = False
    """Keep a history of allocations, and write it to a file for https://pytorch.org/memory_viz when memory runs out.
    Costs RAM and some speed."""
