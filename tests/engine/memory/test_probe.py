from __future__ import annotations

import mmap
import os

import pynvml
import pytest
import torch

from engine.memory.probe import (
    CUDA_CONTEXT_BYTES,
    MemorySample,
    ProcessMemory,
    context_bytes,
    nvml_handle,
    open_probe,
    processes_on,
)
from engine.memory.units import GIB, MIB
from tests.helpers import fake_gpu
from tests.helpers.fake_gpu import FakeNvml

CUDA = torch.device("cuda", 0)
TORCH = {"allocated_bytes": GIB, "reserved_bytes": 11 * GIB, "peak_bytes": 11 * GIB}


def test_open_probe__samples_torch_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    assert open_probe(CUDA)() == MemorySample(
        **TORCH, used_bytes=12 * GIB, total_bytes=16 * GIB, utilization_percent=97, temperature_c=66
    )


def test_open_probe__looks_the_device_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_gpu.install(monkeypatch)
    sample = open_probe(CUDA)
    nvml.lacking = ("nvmlInit", "nvmlDeviceGetHandleByUUID")
    assert sample().used_bytes == 12 * GIB


@pytest.mark.parametrize("lacking", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_open_probe__asks_cuda_where_nvml_is_missing(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    fake_gpu.install(monkeypatch, FakeNvml(lacking=(lacking,)))
    assert open_probe(CUDA)() == MemorySample(**TORCH, used_bytes=3 * GIB, total_bytes=16 * GIB)


def test_open_probe__leaves_out_what_wsl_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, FakeNvml(lacking=("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature")))
    sample = open_probe(CUDA)()
    assert (sample.utilization_percent, sample.temperature_c) == (None, None)
    assert sample.used_bytes == 12 * GIB


def test_open_probe__knows_old_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, FakeNvml(lacking=("memory v2",)))
    assert open_probe(CUDA)().used_bytes == 12 * GIB + 300 * MIB


def test_open_probe__samples_this_process_on_a_cpu() -> None:
    sample = open_probe(torch.device("cpu"))
    before = sample()
    # New pages: malloc may have pages left that other tests have freed.
    ballast = torch.frombuffer(mmap.mmap(-1, 64 * MIB), dtype=torch.uint8).fill_(1)
    after = sample()
    assert after.used_bytes - before.used_bytes == pytest.approx(ballast.nbytes, abs=4 * MIB)
    assert after.total_bytes > after.used_bytes
    assert after.allocated_bytes is after.reserved_bytes is after.peak_bytes is None


@pytest.mark.parametrize("name", [f"GPU-{fake_gpu.UUID}", f"MIG-{fake_gpu.UUID}", "00000000:01:00.0"])
def test_nvml_handle__finds_the_device_whatever_its_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fake_gpu.install(monkeypatch, FakeNvml(handle_name=name))
    assert nvml_handle(CUDA) == "handle"


def test_nvml_handle__is_none_for_an_unknown_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, FakeNvml(handle_name="GPU-another"))
    assert nvml_handle(CUDA) is None


def test_nvml_handle__is_none_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_gpu.install(monkeypatch)

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml.nvmlInit = fail
    assert nvml_handle(CUDA) is None


def test_processes_on__lists_each_program_once_and_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr("engine.memory.probe._process_name", lambda pid: f"program{pid}")
    assert processes_on("handle") == [
        ProcessMemory(12, "program12", 3 * GIB),
        ProcessMemory(10, "program10", 2 * GIB),
        ProcessMemory(11, "program11", None),
    ]


def test_processes_on__names_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_gpu.install(monkeypatch)
    nvml.compute, nvml.graphics = nvml.compute[:1], []
    nvml.compute[0].pid = os.getpid()
    assert "py" in processes_on("handle")[0].name
    nvml.compute[0].pid = 2**30
    assert processes_on("handle")[0].name == "unknown"


def test_processes_on__is_empty_where_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
    fake_gpu.install(monkeypatch, FakeNvml(lacking=lacking))
    assert processes_on("handle") == []
    assert processes_on(None) == []


def test_context_bytes__is_what_the_driver_counts_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_gpu.install(monkeypatch)
    assert context_bytes(CUDA) == CUDA_CONTEXT_BYTES  # this process is not listed
    nvml.compute[0].pid = os.getpid()
    nvml.compute[0].usedGpuMemory = GIB + 600 * MIB
    assert context_bytes(CUDA) == 600 * MIB
    assert context_bytes(torch.device("cpu")) == 0
