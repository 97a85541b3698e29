"""Facts about this machine: GPUs and their driver, torch's build, RAM, shared memory, cores."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pynvml
import torch

from engine.memory.host import Platform, available_cores, current_platform, ram_available_bytes
from engine.memory.probe import ProcessMemory, nvml_handle, processes_on

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    capability: tuple[int, int]
    """CUDA's compute capability, such as (8, 9)."""
    total_bytes: int
    free_bytes: int
    processes: list[ProcessMemory]


@dataclass(frozen=True)
class Machine:
    """Facts about this machine."""

    platform: Platform
    torch_version: str
    torch_cuda: str | None
    """CUDA version that torch was built for; None for a CPU build."""
    driver: str | None
    """Version of the NVIDIA driver; None if there is none."""
    driver_cuda: tuple[int, int] | None
    """Latest CUDA version that the driver supports."""
    gpus: list[Gpu]
    ram_available_bytes: int
    cores: int
    shm_free_bytes: int | None
    """See `shm_free_bytes`."""


def examine_machine(devices: Sequence[torch.device] | None = None) -> Machine:
    """Collect the facts.

    Args:
        devices: GPUs to examine; None for all. Examining a GPU opens a CUDA context of this process on it.
    """
    driver, driver_cuda = _driver_versions()
    if devices is None:
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [torch.device("cuda", index) for index in range(num_gpus)]
    return Machine(
        platform=current_platform(),
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=[_examine_gpu(device) for device in devices],
        ram_available_bytes=ram_available_bytes(),
        cores=available_cores(),
        shm_free_bytes=shm_free_bytes(),
    )


def shm_free_bytes() -> int | None:
    """Free space in /dev/shm; None if it is missing or workers do not need it, because they are forked."""
    # get_start_method() without allow_none would fix the method for the whole process.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() and method != "fork" else None


def free_disk_bytes(folder: Path) -> int:
    """Free space on the disk of ``folder``, which need not exist yet."""
    folder = folder.absolute()
    existing = next(candidate for candidate in (folder, *folder.parents) if candidate.exists())
    return shutil.disk_usage(existing).free


def _examine_gpu(device: torch.device) -> Gpu:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return Gpu(
        name=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        processes=processes_on(nvml_handle(device)),
    )


def _driver_versions() -> tuple[str | None, tuple[int, int] | None]:
    try:
        pynvml.nvmlInit()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12040 is 12.4
        return pynvml.nvmlSystemGetDriverVersion(), (cuda // 1000, cuda % 1000 // 10)
    except pynvml.NVMLError:
        return None, None
