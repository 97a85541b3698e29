"""Checkpoint files that survive a crash or a power cut: the previous file stays complete while a new one is written.

A checkpoint is written beside its place, flushed to the disk, and then renamed onto it. The file that it replaces
stays as ``*.previous.ckpt``. The ZIP format of ``torch.save`` holds a checksum of every tensor, which is compared
before a checkpoint is used.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from data.replacing import replacing
from engine.errors import ConfigError

log = logging.getLogger(__name__)


class SafeCheckpointIO(TorchCheckpointIO):
    """Reads and writes the checkpoints of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, str] = {}
        """Why the newest content of a file could not be written, by file; files that were written are not in it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; if the disk refuses, warn and continue training: the next one may succeed."""
        try:
            write_checkpoint(checkpoint, Path(path))
            self.failures.pop(str(path), None)
        except OSError as error:
            failure = f"{path}: cannot be written ({error.strerror}): the previous file is unchanged"
            self.failures[str(path)] = failure
            log.warning(failure)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Verify and read a checkpoint.

        Raises:
            ConfigError: If it is damaged.
        """
        verify_checkpoint(Path(path), "--ckpt_path")
        return super().load_checkpoint(path, *args, **kwargs)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by a checkpoint in one step, and keep the replaced file as `previous_of` it.

    Raises:
        OSError: If it cannot be written; ``path`` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            _keep(path, previous_of(path))
    _flush_folder(path.parent)


def previous_of(path: Path) -> Path:
    """Return where the replaced checkpoint is kept: ``last.previous.ckpt`` for ``last.ckpt``."""
    return path.with_suffix(f".previous{path.suffix}")


def verify_checkpoint(path: Path, key: str) -> None:
    """Compare the checksums of a checkpoint; messages name the option ``key``.

    Raises:
        ConfigError: If it is missing, cut off or changed; names the previous one if that is intact.
    """
    if path.is_file() and (damage := _damage(path)) is None:
        return
    if path.is_dir():
        inside = next(iter(sorted(path.rglob("last.ckpt"))), "the last.ckpt in it")
        raise ConfigError(f"{key}: {path}: is a folder: give {inside}")
    if not path.is_file():
        rule, remedy = "no such file", "give a checkpoint such as runs/fit/checkpoints/last.ckpt"
    else:
        rule, remedy = f"is damaged ({damage})", "use another checkpoint"
    previous = previous_of(path)
    if previous.is_file() and _damage(previous) is None:
        remedy = f"use {previous}, the one before it, which is whole"
    raise ConfigError(f"{key}: {path}: {rule}: {remedy}")


def _save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Save like ``torch.save``, which Ultralytics replaces by a version that retries and appends to the file."""
    try:
        torch.serialization.save(checkpoint, file)
    except RuntimeError as error:  # torch's ZIP writer hides its cause
        raise (error.__context__ or error) from None


def _keep(path: Path, previous: Path) -> None:
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(path)
    except OSError:  # the file system has no links
        shutil.copyfile(path, previous)


def _damage(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if name is None else f"wrong checksum of {name}"


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, if folders can be flushed (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
