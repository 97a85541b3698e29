"""Errors for users: one line with the file or key, the value, the rule and the remedy; exit status 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from data.errors import DataError


class ConfigError(Exception):
    """A mistake that the user can correct: a key, a file, a combination. The message explains it completely."""


class TrainingError(Exception):
    """Training cannot continue, and no bug is the cause. The message says why and what to do."""


class SaidElsewhere(Exception):
    """The run ends, and another process of it prints the reason."""


USER_ERRORS = (ConfigError, TrainingError, DataError)
EXIT_STATUS = 2
INTERRUPTED_STATUS = 130
"""The exit status of shells for Ctrl-C."""


@contextmanager
def config_key(key: str) -> Iterator[None]:
    """Turn a ``ValueError`` of code that knows no keys into a ConfigError that names the key."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ConfigError(message if key in message else f"{key}: {message}") from error


def some_of(names: Sequence[str], most: int = 8) -> str:
    """Join the first of several names, for messages, and count the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def run_command(main: Callable[[list[str] | None], object]) -> None:
    """Run the main function of a command; print a user's error as one line on standard error and exit with status 2.

    Ctrl-C also ends with one line. A reader of the output that stops early, such as ``head``, ends the command without
    a line. Characters that standard output cannot encode are escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(None)
        print(end="", flush=True)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output once more
        sys.exit(1)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except SaidElsewhere:
        sys.exit(EXIT_STATUS)
