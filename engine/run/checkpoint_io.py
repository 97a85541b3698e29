"""Checkpoint files that survive: a crash or a power cut while one is written leaves the one before it whole.

A checkpoint is written beside its place, flushed to the disk, and only then renamed onto it. The file that it replaces
stays as ``*.previous.ckpt``. The ZIP format of ``torch.save`` holds a checksum of every tensor, which is compared
before a checkpoint is used: bits that have changed on the disk are noticed.
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
        """By file, why its newest content could not be written; those that could be are not in it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; if the disk refuses, say so and let training continue: the next one may succeed."""
        try:
            write_checkpoint(checkpoint, Path(path))
            self.failures.pop(str(path), None)
        except OSError as error:
            failure = f"{path}: cannot be written ({error.strerror}): what was saved before is still there"
            self.failures[str(path)] = failure
            log.warning(failure)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Verify a checkpoint and read it.

        Raises:
            ConfigError: If it is damaged.
        """
        verify_checkpoint(Path(path), "--ckpt_path")
        return super().load_checkpoint(path, *args, **kwargs)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Put a checkpoint in the place of ``path`` in one step, and keep what was there as `previous_of` it.

    Raises:
        OSError: If it cannot be written; then ``path`` is as it was.
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
    """Where the checkpoint is kept that was at ``path`` before: ``last.previous.ckpt`` for ``last.ckpt``."""
    return path.with_suffix(f".previous{path.suffix}")


def verify_checkpoint(path: Path, key: str) -> None:
    """Compare a checkpoint's checksums.

    Args:
        path: The file.
        key: The option that named it, for messages.

    Raises:
        ConfigError: If it is missing, cut off or changed; names the one before it, if that is whole.
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
    """As ``torch.save``, in whose place Ultralytics puts one that tries again, behind what is in the file already."""
    try:
        torch.serialization.save(checkpoint, file)
    except RuntimeError as error:  # of torch's ZIP writer, which hides what has stopped it
        raise (error.__context__ or error) from None


def _keep(path: Path, previous: Path) -> None:
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, previous)


def _damage(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if name is None else f"wrong checksum of {name}"


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where folders can be flushed (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
