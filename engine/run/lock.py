"""A lock for the run folder: one run at a time. The operating system releases it when the process ends."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import ConfigError
from models import cache_folder

log = logging.getLogger(__name__)
_held: dict[Path, FileLock] = {}


def lock_folder(folder: Path) -> None:
    """Keep other processes on this machine out of a run folder until this one ends.

    The lock file lies in the cache folder, so that it does not remain in the run folder.

    Raises:
        ConfigError: If another run uses the folder.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    path = cache_folder() / "locks" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"run.folder: {folder}: another run is writing into it: stop that one, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        log.warning("%s: cannot be locked (%s): make sure that only one run writes into %s", path, error, folder)
        return
    _held[folder] = lock
