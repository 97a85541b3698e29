"""The one error of the data package."""

from __future__ import annotations


class DataError(ValueError):
    """Something in the user's data set that the user can put right; one line: what, value, rule, remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(_without_worker_traceback(message).replace("\n", "\\n"))


def _without_worker_traceback(message: str) -> str:
    """The error's own line, when a DataLoader has wrapped it into the traceback of its worker process."""
    return message.rpartition(f"{DataError.__name__}: ")[2].rstrip("\n")
