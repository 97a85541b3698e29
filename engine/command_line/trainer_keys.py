"""The keys below ``trainer``: refuses values that Lightning would ignore or answer with a traceback.

All checks happen before a run folder is made. What Lightning does well is left to it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from engine.errors import ConfigError

OWN_KEY_INSTEAD = {
    "precision": "model.precision",
    "accumulate_grad_batches": "data.batch_size and data.micro_batch_size",
    "gradient_clip_val": "model.optimizer.max_grad_norm",
    "gradient_clip_algorithm": "model.optimizer.max_grad_norm",
    "default_root_dir": "run.folder",
}
LEFT_OUT = {
    "barebones": "a run without checkpoints and logs keeps nothing",
    "enable_checkpointing": "best.ckpt and last.ckpt are always written",
    "model_registry": "checkpoints stay in the run folder",
    "overfit_batches": "windows are drawn anew in each epoch: list some images in a .txt file and name it in data.yaml",
    "plugins": "precision, checkpoints and what holds processes together are yolofit's own",
    "use_distributed_sampler": "yolofit's sampler shares windows out between devices",
}
"""Keys that may only have their default, and why."""
UNSET = {"enable_checkpointing": (None, True), "overfit_batches": (0, 0.0), "plugins": (None, [])}
"""Values of these keys that mean the default."""
MAX_NUMBER = 2**32 - 1  # the largest seed
RANGES = {
    "max_epochs": (1, MAX_NUMBER),
    "min_epochs": (0, MAX_NUMBER),
    "min_steps": (0, MAX_NUMBER),
    "num_nodes": (1, MAX_NUMBER),
    "check_val_every_n_epoch": (1, MAX_NUMBER),
    "log_every_n_steps": (1, MAX_NUMBER),
    "num_sanity_val_steps": (-1, MAX_NUMBER),
    "reload_dataloaders_every_n_epochs": (0, MAX_NUMBER),
}
NEEDED = ("max_epochs", "check_val_every_n_epoch", "log_every_n_steps")
"""Keys that must have a number."""
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
PROFILERS = ("simple", "advanced", "pytorch")
DEVICES = "a number of devices, a list of their numbers such as [0,1], or auto"
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
RENDEZVOUS = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")
"""Variables that tell a process of those on other machines."""


def check_trainer(trainer: Any) -> None:
    """Refuse values of the parsed section that Lightning refuses, or that have no meaning here.

    Raises:
        ConfigError: With the key, the value, the rule and the remedy.
    """
    _check_own_keys(trainer)
    _check_ranges(trainer)
    for key in LIMITS:
        _check_limit(key, trainer[key])
    _check_validation_interval(trainer.val_check_interval)
    if trainer.accelerator not in ACCELERATORS:
        shown = getattr(trainer.accelerator, "class_path", trainer.accelerator)
        _refuse("accelerator", shown, f"expected one of {', '.join(ACCELERATORS)}")
    numbers = trainer.devices if isinstance(trainer.devices, list) else [trainer.devices]
    is_valid = numbers and trainer.devices != 0 and all(isinstance(one, int) and one >= -1 for one in numbers)
    if trainer.devices != "auto" and not is_valid:
        _refuse("devices", trainer.devices, f"give {DEVICES}")
    _check_time(trainer.max_time)
    _check_profiler(trainer.profiler)


def check_shares(trainer: Any, num_steps: int, num_validation_batches: int) -> None:
    """Refuse shares of less than one batch, and a validation interval longer than an epoch of ``num_steps``.

    Raises:
        ConfigError: With the key, the value and the limit.
    """
    for key, count in (("limit_train_batches", num_steps), ("limit_val_batches", num_validation_batches)):
        share = trainer[key]
        if isinstance(share, float) and 0 < share < 1 and share * count < 1:
            least = math.ceil(1000 / count) / 1000
            _refuse(key, share, f"is less than one of {count} batches: give {least} or more, or a whole number")
    limit = trainer.limit_train_batches
    if limit is not None:
        num_steps = min(limit, num_steps) if isinstance(limit, int) else int(limit * num_steps)
    interval = trainer.val_check_interval
    if isinstance(interval, int) and interval > num_steps:
        _refuse("val_check_interval", interval, f"an epoch has {num_steps} steps: give at most so many")


def check_hardware(trainer: Any) -> None:
    """Refuse devices that this machine does not have.

    Raises:
        ConfigError: With the key, the value and what this machine has.
    """
    _check_accelerator(trainer.accelerator)
    _check_devices(trainer)
    _check_nodes(trainer.num_nodes)


@contextmanager
def explained_by_lightning() -> Iterator[None]:
    """Turn Lightning's errors about a configuration, where no check of yolofit came first, into a ConfigError."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if "deterministic" not in str(error) or "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).partition(",")[0]
        raise ConfigError(f"trainer.deterministic: True: {reason}: use --trainer.deterministic warn") from error


def settled_devices(devices: Any) -> Any:
    """Return ``trainer.devices`` as a number or a list: texts such as ``"2"`` and ``"0,1"`` are converted."""
    text = str(devices).strip("[] ")
    if isinstance(devices, str) and re.fullmatch(r"-?\d+", text):
        return [int(text)] if devices.startswith("[") else int(text)
    if isinstance(devices, str) and re.fullmatch(r"\d+(\s*,\s*\d+)*\s*,?", text):
        return [int(number) for number in text.split(",") if number.strip()]
    return devices


def _refuse(key: str, value: Any, rule: str) -> None:
    raise ConfigError(f"trainer.{key}: {value}: {rule}")


def _check_own_keys(trainer: Any) -> None:
    for key, instead in OWN_KEY_INSTEAD.items():
        default = 1 if key == "accumulate_grad_batches" else None
        if trainer[key] not in (None, default):
            _refuse(key, trainer[key], f"yolofit does this itself: use {instead}")
    for key, reason in LEFT_OUT.items():
        if trainer[key] not in UNSET.get(key, (None, False)):
            shown = "given" if key == "plugins" else trainer[key]
            _refuse(key, shown, f"{reason}: leave it out")
    if trainer.fast_dev_run < 0:
        _refuse("fast_dev_run", trainer.fast_dev_run, "must be true, false or a number of steps")


def _check_ranges(trainer: Any) -> None:
    for key, (low, high) in RANGES.items():
        value = trainer[key]
        if (value is None and key in NEEDED) or (value is not None and not low <= value <= high):
            _refuse(key, value, f"must be between {low} and {high}")
    if trainer.max_steps < 1 and trainer.max_steps != -1:
        _refuse("max_steps", trainer.max_steps, "must be at least 1, or -1 for as many as trainer.max_epochs has")
    if trainer.min_epochs is not None and trainer.min_epochs > trainer.max_epochs:
        _refuse("min_epochs", trainer.min_epochs, f"is more than trainer.max_epochs ({trainer.max_epochs})")


def _check_limit(key: str, value: Any) -> None:
    """Refuse a share or number of batches that is out of range, or leaves none for training."""
    if value is None:
        return
    least = "above 0" if key == "limit_train_batches" else "from 0"
    if value < 0 or (isinstance(value, float) and value > 1) or (value == 0 and key == "limit_train_batches"):
        _refuse(key, value, f"give a share {least} to 1.0, or a whole number of batches")


def _check_validation_interval(value: Any) -> None:
    is_number = isinstance(value, int | float) and value > 0 and not (isinstance(value, float) and value > 1)
    if value is not None and not is_number:
        rule = "give a share of an epoch, above 0 to 1.0, or a whole number of steps; for epochs"
        _refuse("val_check_interval", value, f"{rule}: trainer.check_val_every_n_epoch")


def _check_accelerator(name: str) -> None:
    backends = {"auto": ("cpu",), "gpu": ("cuda", "mps")}.get(name, (name,))
    if not any(AcceleratorRegistry[backend]["accelerator"].is_available() for backend in backends):
        _refuse("accelerator", name, "torch can use none here (python -m engine.doctor says why): use cpu or auto")


def _check_devices(trainer: Any) -> None:
    devices = trainer.devices
    has_gpus = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not has_gpus:
        if isinstance(devices, list) or (devices != "auto" and devices < 1):
            _refuse("devices", devices, "without GPUs this is a number of processes, at least 1: use 1")
        return
    num_gpus = torch.cuda.device_count()
    if isinstance(devices, list):
        if len(set(devices)) < len(devices) or not all(0 <= number < num_gpus for number in devices):
            _refuse("devices", devices, f"GPUs are numbered from 0 to {num_gpus - 1} here; name each once")
    elif devices != "auto" and devices != -1 and not 1 <= devices <= num_gpus:
        _refuse("devices", devices, f"give 1 to {num_gpus}, the GPUs of this machine, or auto")


def _check_nodes(num_nodes: int) -> None:
    if num_nodes > 1 and not any(os.environ.get(name) for name in RENDEZVOUS):
        rule = "this process knows of no other machine and would wait for ever: start it with torchrun or srun"
        _refuse("num_nodes", num_nodes, f"{rule} (docs/distributed.md)")


def _check_time(max_time: Any) -> None:
    if max_time is None:
        return
    try:
        Timer(duration=vars(max_time) if hasattr(max_time, "__dict__") else max_time)
    except (MisconfigurationException, TypeError, ValueError, OverflowError):
        _refuse("max_time", max_time, "give days:hours:minutes:seconds, such as 00:12:00:00, or {hours: 12}")


def _check_profiler(profiler: Any) -> None:
    if isinstance(profiler, str) and profiler not in PROFILERS:
        _refuse("profiler", profiler, f"expected one of {', '.join(PROFILERS)}")


def check_finite(config: Any, prefix: str = "") -> None:
    """Refuse inf and NaN in any key.

    Raises:
        ConfigError: With the key.
    """
    for name, value in vars(config).items():
        if hasattr(value, "__dict__") and not callable(value):
            check_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{name}: {value}: must be a finite number")
