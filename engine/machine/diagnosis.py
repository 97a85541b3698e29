"""What the facts about a machine mean for training: findings with evidence and remedy.

This file reads facts and prints nothing. ``python -m engine.doctor`` and ``engine.fit`` show the findings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from data.loading.ram_plan import PREFETCH, VALIDATION_WORKERS, Cache, worker_bytes, worker_count
from data.loading.ring import blocks_per_worker
from data.loading.sampler import STRIDE_PX, image_sizes
from engine.machine.inventory import Gpu, Machine, free_disk_bytes
from engine.memory.host import Platform, available_cores
from engine.memory.units import GIB, format_bytes
from models.precision import BF16_CAPABILITY

Severity = Literal["ok", "note", "problem"]
PLATFORM_NAMES: dict[Platform, str] = {
    "linux": "Linux",
    "wsl": "Linux under Windows (WSL)",
    "windows": "Windows",
    "other": "neither Linux nor Windows",
}
BUSY_SHARE = 0.1
"""Other programs may hold this share of a GPU's memory without a remark."""
FORKING_PLATFORMS: tuple[Platform, ...] = ("linux", "wsl")
RUN_BYTES = 3 * GIB
"""Disk space of a run, which are three checkpoints of the largest network."""
CACHE_GAIN = 1.2
"""How much faster a loader is with images in RAM than with JPEG files on disk: 117 images/s against 97, measured."""
DATA_BOUND_SHARE = 0.1
"""The loader sets the pace if training waits for it in at least this share of the time."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    evidence: str
    remedy: str = ""
    severity: Severity = "ok"


@dataclass(frozen=True)
class Needs:
    """What a configuration needs from the machine."""

    accelerator: str
    precision: str
    batch_size: int
    image_size: int
    workers: int
    folder: Path

    @property
    def num_workers(self) -> int:
        """Workers of training and validation together."""
        return self.workers + min(self.workers, VALIDATION_WORKERS)

    @property
    def loader_bytes(self) -> int:
        """Bytes of all windows that these workers prepare ahead."""
        return blocks_per_worker(PREFETCH) * self.num_workers * self.batch_size * 3 * self.image_size**2


@dataclass(frozen=True)
class LoaderInUse:
    """What prepares the training images of a process now, and what it could use instead."""

    workers: int
    """Workers in use."""
    cores: int
    """Cores that this process may use."""
    cache: Cache
    """The cache in use; ``none`` if it is switched off, does not fit, or was given up."""
    most_workers: int
    """The most workers for which there are cores and RAM."""
    is_cache_given_up: bool = False
    """Whether the cache was dropped because RAM ran short."""
    is_filling_cache: bool = False
    """Whether this epoch reads the images for the first time."""
    cache_that_fits: Literal["ram", "disk", ""] = ""
    """The cache that would hold all decoded images, if the user has switched the cache off."""

    def text(self) -> str:
        """The loader in one line."""
        given_up = ", given up as RAM ran short" if self.is_cache_given_up else ""
        return f"{self.workers} workers, {self.cores} cores, cache {self.cache}{given_up}"


def needs_of(config: Any, stride_px: int = STRIDE_PX) -> Needs:
    """The needs of a configuration that `engine.command_line.cli` has parsed; its network has this largest stride."""
    return Needs(
        accelerator=str(config.trainer.accelerator),
        precision=config.model.precision,
        batch_size=config.data.batch_size,
        image_size=image_sizes(config.data.image_size, config.data.multi_scale, stride_px)[-1],
        workers=worker_count(config.data.workers, available_cores()),
        folder=Path(config.run.folder),
    )


def check_machine(machine: Machine) -> list[Finding]:
    """Check what matters for every configuration."""
    findings = [_check_torch(machine), _check_host(machine)]
    for gpu in machine.gpus:
        findings += [_check_gpu(gpu), _check_free_memory(gpu)]
    if machine.gpus:
        findings.append(_check_spilling(machine))
    return findings


def check_needs(machine: Machine, needs: Needs) -> list[Finding]:
    """Check whether one configuration can run on this machine."""
    return [
        _check_device(machine, needs),
        _check_cores(machine, needs),
        _check_ram(machine, needs),
        _check_shared_memory(machine, needs),
        _check_disk(needs),
    ]


def diagnose_throughput(data_wait_share: float, loader: LoaderInUse) -> Finding:
    """Whether the loader or the device sets the pace, and which change would help by how much.

    A step takes as long as the slower of the two. The speed of the loader is in proportion to its workers. The device
    was busy while training did not wait. Without workers the loader and the device take turns. The finding does not
    advise what happens without the user.

    Args:
        data_wait_share: Share of the training time, 0 to 1, in which training waited for the loader.
        loader: The loader in use.
    """
    what = "pace of training"
    evidence = f"training waits for data {data_wait_share:.0%} of the time ({loader.text()})"
    if data_wait_share < DATA_BOUND_SHARE:
        return Finding(what, f"the device sets it: {evidence}")
    evidence = f"the loader sets it: {evidence}"
    if loader.is_filling_cache:
        return Finding(what, f"{evidence}; nothing to set: the cache is being filled, and later epochs read from it")
    device_share = max(1 - data_wait_share, 0.01)
    loader_share = 1.0 if loader.workers else data_wait_share
    enough_workers = ceil(loader_share * max(loader.workers, 1) / device_share)
    best_workers = min(enough_workers, loader.most_workers)
    if best_workers > loader.workers:
        step_share = max(device_share, loader_share * max(loader.workers, 1) / best_workers)
        room = "for which there are cores and RAM"
        remedy = f"set data.workers to {best_workers}, {room}: about {1 / step_share:.1f} times as fast"
        return Finding(what, evidence, remedy, "note")
    remedy = "lower data.image_size, or train on a machine with more cores"
    if loader.cache_that_fits:
        gain = 1 / max(device_share, loader_share / CACHE_GAIN)
        place = {"ram": "in RAM", "disk": "on the disk"}[loader.cache_that_fits]
        cached = f"set data.cache to {loader.cache_that_fits}, as all images fit decoded {place}"
        remedy = f"{cached}: about {gain:.1f} times as fast; or {remedy}"
    return Finding(what, evidence, remedy, "note")


def _check_torch(machine: Machine) -> Finding:
    build = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "CPUs only"
    torch_built = f"torch {machine.torch_version}, built for {build}"
    if machine.driver is None or machine.driver_cuda is None:
        evidence = f"{torch_built}; there is no NVIDIA driver, so training runs on the CPU"
        return Finding("torch", evidence, "use a machine with an NVIDIA GPU for large networks", "note")
    latest = "{}.{}".format(*machine.driver_cuda)
    evidence = f"{torch_built}; driver {machine.driver}, for CUDA up to {latest}"
    if machine.gpus:
        return Finding("torch", evidence)
    if machine.torch_cuda is None:
        remedy = "install a torch that is built for CUDA: https://pytorch.org/get-started/locally"
    elif int(machine.torch_cuda.split(".")[0]) > machine.driver_cuda[0]:
        remedy = f"update the NVIDIA driver, or install a torch for CUDA {machine.driver_cuda[0]}"
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = f"check CUDA_VISIBLE_DEVICES ({visible}) and the output of nvidia-smi"
    return Finding("torch", f"{evidence}; but torch cannot use a GPU", remedy, "problem")


def _check_host(machine: Machine) -> Finding:
    evidence = f"{machine.cores} cores, {format_bytes(machine.ram_available_bytes)} RAM free"
    if machine.shm_free_bytes is not None:
        evidence += f", {format_bytes(machine.shm_free_bytes)} free in /dev/shm"
    return Finding("host", f"{PLATFORM_NAMES[machine.platform]}, {evidence}")


def _check_gpu(gpu: Gpu) -> Finding:
    generation = "{}.{}".format(*gpu.capability)
    evidence = f"{gpu.name}, {format_bytes(gpu.total_bytes)}, compute capability {generation}"
    if gpu.capability < BF16_CAPABILITY:
        return Finding("GPU", f"{evidence}, no bf16", "set model.precision to fp16", "note")
    return Finding("GPU", f"{evidence}, bf16 and fp16")


def _check_free_memory(gpu: Gpu) -> Finding:
    evidence = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)} free"
    others = [process for process in gpu.processes if process.pid != os.getpid()]
    if others:
        holders = (
            f"{process.name} (pid {process.pid}"
            + (f", {format_bytes(process.used_bytes)})" if process.used_bytes else ")")
            for process in others
        )
        evidence += f"; other programs: {', '.join(holders)}"
    if gpu.free_bytes >= (1 - BUSY_SHARE) * gpu.total_bytes:
        return Finding("VRAM", evidence)
    remedy = "close programs that you do not need, such as browsers; memory.budget auto uses the VRAM that is free"
    return Finding("VRAM", evidence, remedy, "note")


def _check_spilling(machine: Machine) -> Finding:
    if machine.platform not in ("windows", "wsl"):
        return Finding("spill policy", "this system does not spill: an allocation that does not fit is an error")
    evidence = "if the card is full, the driver uses system RAM without an error, and steps become very slow"
    remedy = (
        "in Windows, set NVIDIA Control Panel > Manage 3D settings > CUDA - Sysmem Fallback Policy to Prefer No Sysmem "
        "Fallback (driver 546.01 or later; WSL may ignore it); memory.budget helps in any case"
    )
    return Finding("spill policy", evidence, remedy, "note")


def _check_device(machine: Machine, needs: Needs) -> Finding:
    on_gpu = bool(machine.gpus) and needs.accelerator in ("auto", "gpu", "cuda")
    wanted = f"trainer.accelerator {needs.accelerator}, model.precision {needs.precision}"
    remedy = ""
    if needs.accelerator in ("gpu", "cuda") and not machine.gpus:
        remedy = "set trainer.accelerator to cpu, or make the GPU usable (see torch above)"
    elif needs.precision == "fp16" and not on_gpu:
        remedy = "set model.precision to fp32, because a CPU has no fast fp16"
    elif needs.precision == "bf16" and on_gpu and machine.gpus[0].capability < BF16_CAPABILITY:
        remedy = "set model.precision to fp16, because this GPU has no bf16"
    return Finding("device", wanted, remedy, "problem" if remedy else "ok")


def _check_cores(machine: Machine, needs: Needs) -> Finding:
    evidence = f"{needs.workers} workers on {machine.cores} cores"
    if needs.workers > machine.cores:
        return Finding("CPU", evidence, f"lower data.workers to {max(machine.cores - 1, 1)}", "note")
    if needs.workers == 0:
        remedy = f"set data.workers to {max(machine.cores - 1, 1)}, because without workers training waits for data"
        return Finding("CPU", evidence, remedy, "note")
    return Finding("CPU", evidence)


def _check_ram(machine: Machine, needs: Needs) -> Finding:
    needed_bytes = needs.loader_bytes + needs.num_workers * worker_bytes(machine.platform in FORKING_PLATFORMS)
    evidence = f"the loader needs {format_bytes(needed_bytes)}; {format_bytes(machine.ram_available_bytes)} free"
    if needed_bytes <= machine.ram_available_bytes:
        return Finding("RAM", evidence)
    remedy = f"lower data.workers (each prepares {blocks_per_worker(PREFETCH)} windows of data.batch_size images)"
    return Finding("RAM", evidence, remedy, "problem")


def _check_shared_memory(machine: Machine, needs: Needs) -> Finding:
    what = "shared memory"
    if machine.shm_free_bytes is None or needs.workers == 0:
        return Finding(what, "the loader does not need it")
    free = f"{format_bytes(machine.shm_free_bytes)} free in /dev/shm"
    evidence = f"the loader needs {format_bytes(needs.loader_bytes)}; {free}"
    if needs.loader_bytes <= machine.shm_free_bytes:
        return Finding(what, evidence)
    gib = ceil(2 * needs.loader_bytes / GIB)
    return Finding(what, evidence, f"start the container with --shm-size={gib}g, or lower data.workers", "problem")


def _check_disk(needs: Needs) -> Finding:
    free_bytes = free_disk_bytes(needs.folder)
    evidence = f"{format_bytes(free_bytes)} free for {needs.folder}"
    if free_bytes >= RUN_BYTES:
        return Finding("disk", evidence)
    remedy = f"choose another run.folder; the checkpoints of YOLO11x need up to {format_bytes(RUN_BYTES)}"
    return Finding("disk", evidence, remedy, "note" if free_bytes >= RUN_BYTES / 10 else "problem")
