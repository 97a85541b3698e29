"""Measure memory: torch's own count, the driver's report for the device, and the processes that hold it.

Nothing here waits for the device: torch counts on the host, and NVML (nvidia-ml-py) asks the driver. Where NVML is
missing or does not answer, as on WSL in part, the value is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import pynvml
import torch

from engine.memory.host import ram_limit_bytes
from engine.memory.units import MIB

CUDA_CONTEXT_BYTES = 512 * MIB
"""Usual size of CUDA's context and loaded kernels, which torch's allocator does not count."""


@dataclass(frozen=True)
class MemorySample:
    """Memory at one moment; None if not known. A CPU has only used and total bytes: RAM of this process."""

    allocated_bytes: int | None = None
    """Bytes of live tensors."""
    reserved_bytes: int | None = None
    """Bytes that torch's caching allocator holds."""
    peak_bytes: int | None = None
    """Largest ``allocated_bytes`` so far (``torch.cuda.max_memory_allocated``)."""
    used_bytes: int | None = None
    """Bytes that all programs use on the device, as ``nvidia-smi`` reports them."""
    total_bytes: int | None = None
    """Physical memory of the device."""
    utilization_percent: int | None = None
    """Share of recent time in which the GPU was busy."""
    temperature_c: int | None = None
    """Temperature of the GPU."""


@dataclass(frozen=True)
class ProcessMemory:
    """A program on the device."""

    pid: int
    name: str
    used_bytes: int | None
    """None on Windows and WSL, where the driver does not report it."""


Probe = Callable[[], MemorySample]


def open_probe(device: torch.device) -> Probe:
    """Return a function that samples the memory of ``device``, or the RAM of this process for a CPU."""
    if device.type == "cuda":
        return partial(sample_gpu, device, nvml_handle(device))
    return partial(sample_process, psutil.Process(), ram_limit_bytes())


def sample_process(process: psutil.Process, total_bytes: int) -> MemorySample:
    """Sample the resident RAM of one process, without its loader's workers."""
    return MemorySample(used_bytes=process.memory_info().rss, total_bytes=total_bytes)


def sample_gpu(device: torch.device, handle: Any | None) -> MemorySample:
    """Sample the memory of a GPU with a given `nvml_handle`; without one, CUDA reports used and total bytes."""
    torch_bytes = torch.cuda.memory_stats_as_nested_dict(device)
    allocated = torch_bytes.get("allocated_bytes", {}).get("all", {})
    reserved = torch_bytes.get("reserved_bytes", {}).get("all", {})
    used_bytes, total_bytes = _used_and_total(handle)
    if used_bytes is None:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        used_bytes = total_bytes - free_bytes
    utilization = _ask("nvmlDeviceGetUtilizationRates", handle)
    return MemorySample(
        allocated_bytes=allocated.get("current", 0),
        reserved_bytes=reserved.get("current", 0),
        peak_bytes=allocated.get("peak", 0),
        used_bytes=used_bytes,
        total_bytes=total_bytes,
        utilization_percent=None if utilization is None else utilization.gpu,
        temperature_c=_ask("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
    )


def nvml_handle(device: torch.device) -> Any | None:
    """The driver's handle of a torch device, or None without NVML.

    Torch numbers only visible devices (CUDA_VISIBLE_DEVICES) and NVML numbers all, so the number cannot be used. The
    device is found by its UUID or its address on the PCI bus.
    """
    properties: Any = torch.cuda.get_device_properties(device)
    pci = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    for prefix in ("GPU", "MIG"):
        handle = _ask("nvmlDeviceGetHandleByUUID", f"{prefix}-{properties.uuid}")
        if handle is not None:
            return handle
    return _ask("nvmlDeviceGetHandleByPciBusId", pci)


def processes_on(handle: Any | None) -> list[ProcessMemory]:
    """The programs on a device, the largest first; empty if the driver does not report them."""
    used_bytes: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        for process in _ask(f"nvmlDeviceGet{kind}RunningProcesses", handle) or []:
            used_bytes[process.pid] = process.usedGpuMemory or used_bytes.get(process.pid)
    processes = [ProcessMemory(pid, _process_name(pid), used) for pid, used in used_bytes.items()]
    return sorted(processes, key=lambda process: process.used_bytes or 0, reverse=True)


def context_bytes(device: torch.device) -> int:
    """Bytes that this process holds on a GPU beside torch's allocator; the usual size if it is not known."""
    if device.type != "cuda":
        return 0
    measured = measured_context_bytes(device)
    return CUDA_CONTEXT_BYTES if measured is None else measured


def measured_context_bytes(device: torch.device) -> int | None:
    """The same, but None if the driver does not report it."""
    torch.cuda.mem_get_info(device)  # creates the context if there is none
    for process in processes_on(nvml_handle(device)):
        if process.pid == os.getpid() and process.used_bytes is not None:
            return max(process.used_bytes - torch.cuda.memory_reserved(device), 0)
    return None


def _used_and_total(handle: Any | None) -> tuple[int | None, int | None]:
    # Version 2 excludes the memory of the driver, as nvidia-smi does; drivers before 510 lack it.
    memory = _ask("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
    memory = memory or _ask("nvmlDeviceGetMemoryInfo", handle)
    return (None, None) if memory is None else (memory.used, memory.total)


def _ask(function: str, subject: Any | None, *arguments: Any) -> Any | None:
    """Call an NVML function with a handle or a name; None if that is None or NVML raises an error."""
    if subject is None:
        return None
    try:
        return getattr(pynvml, function)(subject, *arguments)
    except pynvml.NVMLError:
        return None


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # it has ended, belongs to another user, or runs outside this container
        return "unknown"
