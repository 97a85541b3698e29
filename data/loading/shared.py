"""A block of memory that the processes of a loader share, whether they are forked or spawned.

Forked processes inherit an anonymous mapping. It has no name, a crash cannot leave it behind, and it does not count
against /dev/shm, which containers limit to 64 MiB. Spawned processes receive torch's shared memory. The block can also
be a file that all processes map. A block takes memory only for written bytes, except in /dev/shm. A file takes its disk
space at once: on a disk that becomes full later, a write would end the process with a signal.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import weakref
from pathlib import Path

import numpy as np
import torch


def is_forked() -> bool:
    """Whether worker processes are forked and so inherit the memory of this process."""
    return multiprocessing.get_start_method() == "fork"


class SharedBlock:
    """Bytes, initially zero, that all processes see."""

    def __init__(self, num_bytes: int, file: Path | None = None) -> None:
        """Reserve the bytes.

        Args:
            num_bytes: Size of the block.
            file: Keeps the bytes in this new file; None keeps them in RAM. Where processes are forked, the file loses
                its name at once, so that nothing remains however the run ends. Else it is removed with the block.

        Raises:
            OSError: If there is no room.
        """
        self.num_bytes = max(num_bytes, 1)
        self.is_shared = True  # False for an anonymous block that was sent to a spawned process
        self._file = file
        self._map: mmap.mmap | None = None
        self._tensor: torch.Tensor | None = None
        if file is not None:
            mapped = _map_new_file(file, self.num_bytes)
            if is_forked():
                file.unlink()
                self._file, self._map = None, mapped
            else:
                weakref.finalize(self, file.unlink, missing_ok=True)
        elif is_forked():
            self._map = mmap.mmap(-1, self.num_bytes)
        else:
            storage = _new_shared(self.num_bytes)
            self._tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._open()

    def _open(self) -> None:
        if self._file is not None:
            self.array = np.memmap(self._file, np.uint8, "r+", shape=(self.num_bytes,)).view(np.ndarray)
        elif self._map is not None:
            self.array = np.frombuffer(self._map, np.uint8)
        elif self._tensor is not None:
            self.array = self._tensor.numpy()

    def release(self) -> None:
        """Return the memory to the system where it can take it (Linux, forked); the bytes are then zero."""
        if self._map is not None and hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE)

    def __getstate__(self) -> dict[str, object]:
        """What a spawned process needs to open the same block; for an anonymous mapping only its size."""
        is_shared = self.is_shared and self._map is None
        return self.__dict__ | {"is_shared": is_shared, "_map": None, "array": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        if self._file is None and self._tensor is None:
            self._map = mmap.mmap(-1, self.num_bytes)
        self._open()


def _new_shared(num_bytes: int) -> torch.UntypedStorage:
    """Zeros in torch's shared memory; Linux reserves their place in /dev/shm at once."""
    try:
        return torch.UntypedStorage._new_shared(num_bytes)
    except RuntimeError as error:
        reason = f"no room for {num_bytes / 2**20:.0f} MiB that processes share"
        raise OSError(errno.ENOSPC, reason, "/dev/shm") from error


def _map_new_file(file: Path, num_bytes: int) -> mmap.mmap:
    """A new file of zeros with its place on the disk reserved."""
    try:
        with file.open("xb+") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, num_bytes)
            stream.truncate(num_bytes)
            return mmap.mmap(stream.fileno(), num_bytes)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from None
