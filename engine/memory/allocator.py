"""Keeps torch's caching allocator within the budget, and asks it for a record when memory runs out.

Under Windows and WSL the driver does not refuse memory that the card does not have: it serves it from system
RAM. A cap on the allocator turns that silent slow-down back into an error, from which training can recover.
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
"""What ``memory.budget: auto`` leaves free, for the desktop and other programs to grow."""
MAX_SNAPSHOT_ENTRIES = 100_000


def enable_expandable_segments() -> bool:
    """Switch expandable segments on where they work; whatever the user set in the environment is kept.

    To be called before the first use of CUDA.

    Returns:
        Whether they are on because of this call.
    """
    # Drivers of WSL refuse some of the virtual memory calls behind it: pytorch/pytorch#192330.
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
    """The budget in bytes: what this process may hold on ``device``, CUDA's context included.

    On a CPU it is the same of RAM, for plans only: nothing caps it there.

    Raises:
        ConfigError: If ``memory.budget`` cannot be read, or is more than the device has free.
    """
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        free_bytes += torch.cuda.memory_reserved(device) + context_bytes(device)  # ours already
    else:
        free_bytes, total_bytes = ram_available_bytes(), ram_limit_bytes()
    free_bytes = min(free_bytes, total_bytes)
    if config.budget == "auto":
        return free_bytes - MARGIN_BYTES
    budget_bytes = budget_bytes_of(config.budget, total_bytes)
    if budget_bytes > free_bytes:
        raise ConfigError(
            f"memory.budget: {config.budget}: {format_bytes(budget_bytes)} is more than the "
            f"{format_bytes(free_bytes)} free of this device's {format_bytes(total_bytes)}: use auto, "
            "or close other programs (python -m engine.doctor lists them)"
        )
    return budget_bytes


def cap_allocator(device: torch.device, budget_bytes: int) -> None:
    """Make torch raise an out-of-memory error where it would exceed the budget; nothing happens on a CPU."""
    if device.type != "cuda":
        return
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    fraction = (budget_bytes - final_context_bytes(device)) / total_bytes
    torch.cuda.set_per_process_memory_fraction(min(max(fraction, 0.0), 1.0), device)


def record_allocations() -> None:
    """Begin to keep the last allocations with their call stacks, for `dump_snapshot`."""
    torch.cuda.memory._record_memory_history(max_entries=MAX_SNAPSHOT_ENTRIES)


def dump_snapshot(path: Path) -> None:
    """Write the record, to be looked at in https://pytorch.org/memory_viz."""
    torch.cuda.memory._dump_snapshot(str(path))


def budget_bytes_of(budget: str | float, total_bytes: int) -> int:
    """A budget that is no ``auto`` in bytes, on a device with so many.

    Raises:
        ConfigError: If it is neither a share nor a size.
    """
    with config_key("memory.budget"):
        try:
            number = float(budget)
        except ValueError:
            return parse_bytes(str(budget))
        if not 0 < number <= 1:
            raise ValueError(f"{budget}: a number without unit is a fraction, 0 to 1: write a size as 14GiB")
        return int(number * total_bytes)
