"""One line for a machine that fails during a run: the reason, what to do, and how to resume.

``docs/faults.md`` lists the faults and the reaction to each. This file has those that end the run although its
configuration is right; a traceback would only hide what has happened.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.errors import TrainingError

WORKER_LOST = "DataLoader worker"
"""The beginning of torch's messages about a lost worker. One lost while it hands over a window breaks a connection."""


@contextmanager
def explained_faults(last_checkpoint: Path) -> Iterator[None]:
    """Turn a lost device, worker or disk into a TrainingError that says how to resume from ``last_checkpoint``.

    Raises:
        TrainingError: With the original error as its cause.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise TrainingError(
            f"the device has failed ({_first_line(error)}): look at nvidia-smi and the system's log, and restart the "
            f"machine if nvidia-smi does not show the device; {how_to_resume(last_checkpoint)}"
        ) from error
    except BrokenPipeError:  # `run_command` handles standard output
        raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(WORKER_LOST):
            raise
        reason = _first_line(error) or type(error).__name__
        raise TrainingError(
            f"a process that prepares images is gone ({reason}): usually the system has killed it because RAM "
            f"was short: lower data.workers or data.batch_size; {how_to_resume(last_checkpoint)}"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        what = f"{error.filename or 'a file'}: {error.strerror}"
        raise TrainingError(f"{what}: make room or look at the disk; {how_to_resume(last_checkpoint)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def how_to_resume(checkpoint: Path) -> str:
    """Say how to resume from a run's ``last.ckpt``, if it exists."""
    if not checkpoint.is_file():
        return "no checkpoint was written yet: start again"
    return f"resume with the same command and --ckpt_path {shlex.quote(str(checkpoint))}"
