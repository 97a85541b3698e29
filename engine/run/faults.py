"""What a run says when the machine fails under it: one line with the reason, what to do, and where to resume.

``docs/faults.md`` lists the faults and the reaction to each. Here are those that end the run through no mistake of its
configuration, and for which a traceback would only hide what has happened.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.errors import TrainingError

WORKER_LOST = "DataLoader worker"
"""How torch's messages begin when a worker is gone; one that goes while it hands over a window breaks a connection."""


@contextmanager
def explained_faults(last_checkpoint: Path) -> Iterator[None]:
    """Turn a lost device, worker or disk into a TrainingError that names the checkpoint to resume from.

    Args:
        last_checkpoint: The run's ``last.ckpt``, whether it was written or not.

    Raises:
        TrainingError: With the original error as its cause.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise TrainingError(
            f"the device has failed ({_first_line(error)}): look at nvidia-smi and the system's log, and restart the "
            f"machine if it is not to be seen there; {how_to_resume(last_checkpoint)}"
        ) from error
    except BrokenPipeError:  # of standard output: see `run_command`
        raise
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(WORKER_LOST):
            raise
        reason = _first_line(error) or type(error).__name__
        raise TrainingError(
            f"a process that prepares images is gone ({reason}): mostly the system has killed it because RAM "
            f"was short: lower data.workers or data.batch_size; {how_to_resume(last_checkpoint)}"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise TrainingError(
            f"{error.filename or 'a file'}: {error.strerror}: make room or look at the disk; "
            f"{how_to_resume(last_checkpoint)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def how_to_resume(checkpoint: Path) -> str:
    """How to resume from a run's ``last.ckpt``, if it is there."""
    if not checkpoint.is_file():
        return "no checkpoint was written yet: start again"
    return f"resume with the same command and --ckpt_path {shlex.quote(str(checkpoint))}"
