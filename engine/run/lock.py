"""One run at a time in a folder: a lock that the operating system takes back when the process ends, however it ends."""

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

    The lock file lies in the cache folder, so that nothing is left in the run folder.

    Raises:
        ConfigError: If a run that is still going has the folder.
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
        log.warning("%s: cannot be locked (%s): see to it that only one run writes into %s", path, error, folder)
        return
    _held[folder] = lock
