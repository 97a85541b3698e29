"""The devices of a run: the device of this process, and the number of devices that share a window."""

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
"""Programs that may have started the processes, in the order in which Lightning checks them."""


def cluster_environment() -> ClusterEnvironment:
    """The program that started this process, such as torchrun or SLURM, or Lightning itself.

    Raises:
        ConfigError: If the settings of SLURM contradict each other.
    """
    try:
        return next((kind() for kind in ENVIRONMENTS if kind.detect()), None) or LightningEnvironment()
    except RuntimeError as error:
        raise ConfigError(" ".join(str(error).split())) from error


def device_of(trainer: Any) -> torch.device:
    """The device on which this process trains, from the ``trainer`` section of a configuration."""
    if trainer.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return torch.device("cpu")
    devices, local_rank = trainer.devices, cluster_environment().local_rank()
    return torch.device("cuda", devices[local_rank] if isinstance(devices, list) else local_rank)


def count_devices(trainer: Any) -> int:
    """The number of devices that share a window, from the ``trainer`` section of a configuration."""
    devices = trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    else:  # auto or -1: every device
        count = torch.cuda.device_count() if device_of(trainer).type == "cuda" else 1
    return max(count, 1) * int(trainer.num_nodes)
