"""Limit torch's caching allocator to the budget, and write its history when memory runs out.

The driver of Windows and WSL does not refuse memory that the card does not have; it serves system RAM. The limit turns
this silent slowdown into an error, from which training recovers.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from engine.errors import ConfigError, config_key
from engine.memory.config import MemoryConfig
from engine.memory.host import current_platform, ram_available_bytes, ram_limit_bytes
from engine.memory.overhead import final_context_bytes
from engine.memory.probe import context_bytes
from engine.memory.units import MIB, format_bytes, parse_bytes

MARGIN_BYTES = 512 * MIB
"""Bytes that ``memory.budget: auto`` leaves free for the desktop and other programs."""
MAX_SNAPSHOT_ENTRIES = 100_000


def enable_expandable_segments() -> bool:
    """Switch on expandable segments where they work, unless the user's environment sets them.

    Call this before the first use of CUDA.

    Returns:
        Whether this call switched them on.
    """
    # Drivers of WSL refuse some of the virtual memory calls that they need: pytorch/pytorch#192330.
    if current_platform() != "linux":
        return False
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name
    settings = {name: os.environ[name] for name in names if os.environ.get(name)}
    if any("expandable_segments" in value for value in settings.values()):
        return False
    name, value = next(iter(settings.items()), (names[0], ""))
    os.environ[name] = f"{value},expandable_segments:True".lstrip(",")
    return True


def resolve_budget(config: MemoryConfig, device: torch.device) -> int:
    """The bytes that this process may hold on ``device``, CUDA's context included.

    On a CPU they are bytes of RAM, for plans only; nothing limits them.

    Raises:
        ConfigError: If ``memory.budget`` is not a size, or is more than the device has free.
    """
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        free_bytes += torch.cuda.memory_reserved(device) + context_bytes(device)  # this process holds these already
    else:
        free_bytes, total_bytes = ram_available_bytes(), ram_limit_bytes()
    free_bytes = min(free_bytes, total_bytes)
    if config.budget == "auto":
        return free_bytes - MARGIN_BYTES
    budget_bytes = budget_bytes_of(config.budget, total_bytes)
    if budget_bytes > free_bytes:
        raise ConfigError(
            f"memory.budget: {config.budget}: {format_bytes(budget_bytes)} is more than the "
            f"{format_bytes(free_bytes)} free of this device's {format_bytes(total_bytes)}. Use auto, "
            "or close other programs (python -m engine.doctor lists them)."
        )
    return budget_bytes


def cap_allocator(device: torch.device, budget_bytes: int) -> None:
    """Make torch raise an out-of-memory error when it would exceed the budget; does nothing on a CPU."""
    if device.type != "cuda":
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    fraction = (budget_bytes - final_context_bytes(device)) / total_bytes
    torch.cuda.set_per_process_memory_fraction(min(max(fraction, 0.0), 1.0), device)


def record_allocations() -> None:
    """Start to keep the last allocations with their call stacks, for `dump_snapshot`."""
    torch.cuda.memory._record_memory_history(max_entries=MAX_SNAPSHOT_ENTRIES)


def dump_snapshot(path: Path) -> None:
    """Write the kept allocations to a file for https://pytorch.org/memory_viz."""
    torch.cuda.memory._dump_snapshot(str(path))


def budget_bytes_of(budget: str | float, total_bytes: int) -> int:
    """The bytes of a budget other than ``auto``, on a device with ``total_bytes``.

    Raises:
        ConfigError: If it is neither a fraction nor a size.
    """
    with config_key("memory.budget"):
        try:
            number = float(budget)
        except ValueError:
            return parse_bytes(str(budget))
        if not 0 < number <= 1:
            raise ValueError(f"{budget}: a number without unit is a fraction from 0 to 1. Write a size as 14GiB.")
        return int(number * total_bytes)
