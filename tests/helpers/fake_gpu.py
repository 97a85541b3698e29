"""A CUDA device and an NVIDIA driver that are not there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pynvml
import pytest
import torch

from engine.memory import probe
from engine.memory.units import GIB, MIB

UUID = "5f2c-uuid"


class FakeNvml:
    """Answers like ``pynvml`` for one device; functions named in ``lacking`` fail as unsupported ones do."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, *, handle_name: str = f"GPU-{UUID}", lacking: tuple[str, ...] = ()) -> None:
        self.handle_name = handle_name
        self.lacking = lacking
        self.compute = [SimpleNamespace(pid=10, usedGpuMemory=2 * GIB), SimpleNamespace(pid=11, usedGpuMemory=None)]
        self.graphics = [SimpleNamespace(pid=10, usedGpuMemory=None), SimpleNamespace(pid=12, usedGpuMemory=3 * GIB)]

    def __getattribute__(self, name: str) -> object:
        if name.startswith("nvml") and name in object.__getattribute__(self, "lacking"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "591.44"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return self._handle(name)

    def nvmlDeviceGetHandleByPciBusId(self, name: str) -> str:
        return self._handle(name)

    def _handle(self, name: str) -> str:
        if name != self.handle_name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> SimpleNamespace:
        if version is not None and "memory v2" in self.lacking:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        kept_by_driver = 0 if version else 300 * MIB
        return SimpleNamespace(used=12 * GIB + kept_by_driver, total=16 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 66

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return self.compute

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        return self.graphics


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None = None) -> FakeNvml:
    """Make torch see one 16 GiB device with 13 GiB free, and the driver as described."""
    nvml = nvml or FakeNvml()
    monkeypatch.setattr(probe, "pynvml", nvml)
    properties = SimpleNamespace(
        uuid=UUID, pci_domain_id=0, pci_bus_id=1, pci_device_id=0, total_memory=16 * GIB, name="RTX 4080 SUPER"
    )
    counts = {
        "allocated_bytes": {"all": {"current": GIB, "peak": 11 * GIB}},
        "reserved_bytes": {"all": {"current": 11 * GIB}},
    }
    fakes = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device: properties.name,
        "get_device_capability": lambda device: (8, 9),
        "get_device_properties": lambda device: properties,
        "memory_stats_as_nested_dict": lambda device: counts,
        "memory_reserved": lambda device: GIB,
        "mem_get_info": lambda device: (13 * GIB, 16 * GIB),
    }
    for name, function in fakes.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return nvml


def install_two(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Make torch see two such devices, the first of which is the current one at first.

    Returns:
        What is asked of which device, in order: every such question opens a CUDA context there.
    """
    install(monkeypatch)
    asked: list[tuple[str, int]] = []
    current = [0]

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def ask(device: torch.device | int | None = None, *args: object) -> object:
            index = current[0] if device is None else torch.device(device).index
            asked.append((name, current[0] if index is None else index))
            return function(device, *args)

        return ask

    per_device = {
        "mem_get_info": torch.cuda.mem_get_info,
        "memory_reserved": torch.cuda.memory_reserved,
        "get_device_name": torch.cuda.get_device_name,
        "get_device_capability": torch.cuda.get_device_capability,
        "get_device_properties": torch.cuda.get_device_properties,
        "set_device": lambda device: current.__setitem__(0, torch.device(device).index),
    }
    for name, function in per_device.items():
        monkeypatch.setattr(torch.cuda, name, noted(name, function))
    limit = noted("set_per_process_memory_fraction", lambda device, fraction: None)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: limit(device, part))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    return asked
