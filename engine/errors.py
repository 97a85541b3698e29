"""Errors for users: one line that names the file or key, the value, the rule and the remedy; exit status 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.errors import DataError


class ConfigError(Exception):
    """Something the user can put right: a key, a file, a combination. The message is the whole explanation."""


class TrainingError(Exception):
    """Training cannot continue, through no programming error of ours: the message says why and what to do."""


class SaidElsewhere(Exception):
    """The run ends, and another of its processes prints why."""


USER_ERRORS = (ConfigError, TrainingError, DataError)
EXIT_STATUS = 2
INTERRUPTED_STATUS = 130
"""As shells have it for Ctrl-C."""


@contextmanager
def config_key(key: str) -> Iterator[None]:
    """Turn a ``ValueError`` of the parts, which know no keys, into a ConfigError that names the key."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ConfigError(message if key in message else f"{key}: {message}") from error


def run_command(main: Callable[[list[str] | None], object]) -> None:
    """Run a command's main function; a user's error becomes one line on standard error and exit status 2.

    Ctrl-C ends with a line as well, and a reader that wants no more, such as ``head``, without one. What the terminal
    or file behind standard output cannot show, such as an arrow in a Windows code page or a file's name that is not
    text, is written as an escape.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        sys.exit(1)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except SaidElsewhere:
        sys.exit(EXIT_STATUS)
