"""The devices of a run: which one this process trains on, and how many share a window."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from engine.errors import ConfigError

ENVIRONMENTS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
"""Who may have started the processes, in the order in which Lightning asks."""


def cluster_environment() -> ClusterEnvironment:
    """Who has started this process, and which of them it is: torchrun, SLURM and so on, or Lightning itself.

    Raises:
        ConfigError: If SLURM's settings cannot be right.
    """
    try:
        return next((kind() for kind in ENVIRONMENTS if kind.detect()), None) or LightningEnvironment()
    except RuntimeError as error:
        raise ConfigError(" ".join(str(error).split())) from error


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return cluster_environment().local_rank()


def device_of(trainer: Any) -> torch.device:
    """The device that this process will train on, from the ``trainer`` section of a configuration."""
    if trainer.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return torch.device("cpu")
    devices = trainer.devices
    return torch.device("cuda", devices[local_rank()] if isinstance(devices, list) else local_rank())


def count_devices(trainer: Any) -> int:
    """Devices over which a window is shared out, from the same section."""
    devices = trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    else:  # auto or -1: all there are
        count = torch.cuda.device_count() if device_of(trainer).type == "cuda" else 1
    return max(count, 1) * int(trainer.num_nodes)
