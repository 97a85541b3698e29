"""The one error of the data package."""

from __future__ import annotations


class DataError(ValueError):
    """An error in the user's data set that the user can correct; one line: file, value, rule, remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_worker_traceback(message).replace("\n", "\\n"))


def _without_worker_traceback(message: str) -> str:
    """The error's own line, without the worker's traceback that a DataLoader puts around it."""
    return message.rpartition(f"{DataError.__name__}: ")[2].rstrip("\n")
