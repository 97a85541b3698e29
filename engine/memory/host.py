"""The memory, cores and operating system that this process has, with the limits of its container.

A container sees all memory and cores of the machine. Its own limits are in its control group (cgroup), and every limit
also holds for the groups below. Both versions of the interface are read, from this process's group upwards.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

Platform = Literal["linux", "wsl", "windows", "other"]
CGROUPS = "sys/fs/cgroup"
MEMORY_LIMITS = ("memory.max", "memory.limit_in_bytes")  # in version 2 and in version 1 of the interface
CPU_LIMITS = ("cpu.max", "cpu.cfs_quota_us")
CPU_PERIOD = "cpu.cfs_period_us"


def current_platform() -> Platform:
    """The operating system of the NVIDIA driver; WSL uses the driver of Windows."""
    if sys.platform == "win32":
        return "windows"
    if sys.platform != "linux":
        return "other"
    return "wsl" if "microsoft" in platform.release().lower() else "linux"


def ram_limit_bytes(root: Path = Path("/")) -> int:
    """The most RAM that this process can have: the machine's, or its container's limit."""
    limits = [_number(group / name) for group, name in _groups(root, "memory", *MEMORY_LIMITS)]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def ram_available_bytes(root: Path = Path("/")) -> int:
    """RAM that this process can take without swapping; file caches count as available."""
    available = [psutil.virtual_memory().available]
    for group, name in _groups(root, "memory", *MEMORY_LIMITS):
        is_v2 = name == MEMORY_LIMITS[0]
        limit = _number(group / name)
        used = _number(group / ("memory.current" if is_v2 else "memory.usage_in_bytes"))
        if limit is not None and used is not None:
            cache = _statistic(group / "memory.stat", "inactive_file" if is_v2 else "total_inactive_file")
            available.append(max(limit - used + cache, 0))
    return min(available)


def available_cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use: its affinity, or its container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group, name in _groups(root, "cpu", *CPU_LIMITS):
        # Version 2 has both numbers in one file; "max" and -1 mean no limit.
        text = _text(group / name) + (f" {_text(group / CPU_PERIOD)}" if name == CPU_LIMITS[1] else "")
        numbers = [int(word) for word in text.split() if word.isdigit()]
        if len(numbers) == 2:
            cores = min(cores, numbers[0] // numbers[1])
    return max(cores, 1)


def _groups(root: Path, controller: str, name_v2: str, name_v1: str) -> Iterator[tuple[Path, str]]:
    """The folders of this process's group and of all groups above it, each with the name of its limit file."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / CGROUPS, name_v2
        elif controller in controllers.split(","):
            base, name = root / CGROUPS / controller, name_v1
        else:
            continue
        folder = base / group.lstrip("/")
        for candidate in (folder, *folder.parents):
            if (candidate / name).is_file():
                yield candidate, name
            if candidate == base:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _statistic(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
