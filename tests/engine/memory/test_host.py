from __future__ import annotations

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine.memory import host
from engine.memory.units import GIB, MIB


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    ram = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    """A group of 8 GiB and 2.5 cores in a slice of 4 GiB and 6 cores; the lower limits count."""
    return write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/work.slice/job\n",
            "sys/fs/cgroup/work.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/work.slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/work.slice/memory.stat": f"anon 1\ninactive_file {512 * MIB}\n",
            "sys/fs/cgroup/work.slice/cpu.max": "600000 100000\n",
            "sys/fs/cgroup/work.slice/job/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/work.slice/job/memory.current": f"{1 * GIB}\n",
            "sys/fs/cgroup/work.slice/job/memory.stat": "inactive_file 0\n",
            "sys/fs/cgroup/work.slice/job/cpu.max": "250000 100000\n",
        },
    )


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A container: the path in /proc belongs to the host and does not exist; the container's group is the root."""
    return write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {256 * MIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/unused": "",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )


def test_limits__of_version_2(version_2: Path) -> None:
    assert host.ram_limit_bytes(version_2) == 4 * GIB
    assert host.ram_available_bytes(version_2) == GIB + 512 * MIB
    assert host.available_cores(version_2) == 2


def test_limits__of_version_1(version_1: Path) -> None:
    assert host.ram_limit_bytes(version_1) == 2 * GIB
    assert host.ram_available_bytes(version_1) == GIB + 256 * MIB
    assert host.available_cores(version_1) == 3


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory.current": "5\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
        {
            "proc/self/cgroup": "4:memory:/\n2:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["no groups", "version 2", "version 1"],
)
def test_limits__are_the_machine_s_without_any(tmp_path: Path, files: dict[str, str]) -> None:
    root = write(tmp_path, files)
    assert host.ram_limit_bytes(root) == 64 * GIB
    assert host.ram_available_bytes(root) == 60 * GIB
    assert host.available_cores(root) == 16


def test_available_cores__is_at_least_one(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert host.available_cores(write(tmp_path, files)) == 1


@pytest.mark.parametrize(
    ("system", "release", "name"),
    [
        ("linux", "6.8.0-45-generic", "linux"),
        ("linux", "6.6.87.2-microsoft-standard-WSL2", "wsl"),
        ("win32", "11", "windows"),
        ("darwin", "25.0.0", "other"),
    ],
)
def test_current_platform(monkeypatch: pytest.MonkeyPatch, system: str, release: str, name: str) -> None:
    monkeypatch.setattr(host.sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert host.current_platform() == name
