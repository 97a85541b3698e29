"""Writes a file beside its final path and renames it, so that no reader finds half of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[BinaryIO]:
    """A new file that replaces ``path`` in one step at the end of the block; after an exception ``path`` is unchanged.

    Args:
        path: Where the content goes.
        writer: Distinguishes processes that may write the same file at the same time.
    """
    partial = path.with_name(f"{path.name}{writer}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
