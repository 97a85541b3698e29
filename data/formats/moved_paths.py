r"""Finds what a path of another machine means here: the same end of the path, below a folder of this machine.

``/content/boards/train/images`` and ``C:\boards\train\images`` are both ``train/images`` beside data.yaml, once the
data set has been copied.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple


class Place(NamedTuple):
    """Where paths of another machine are on this one.

    Found for one path of a file, it holds for the others: a shorter end would be another file, for ``train/1.jpg``
    must not become ``1.jpg``.
    """

    folder: Path
    num_left_out: int
    """Parts at the beginning of each path."""

    def path(self, written: str) -> Path:
        """What a path means here."""
        return self.folder.joinpath(*parts_of(written)[self.num_left_out :])


def find_place(folders: Sequence[Path], written: str, num_kept: int = 1) -> Place | None:
    """Where a path of another machine is on this one: the longest end of it that is there.

    Args:
        folders: Where the end may begin, the likeliest folder first.
        written: The path, in the notation of any system.
        num_kept: How many parts at its end must stay; at least one.

    Returns:
        The place; None if nothing is there.
    """
    for num_left_out in range(len(parts_of(written)) - max(num_kept, 1) + 1):
        for folder in folders:
            place = Place(folder, num_left_out)
            if os.path.exists(place.path(written)):  # noqa: PTH110  Path raises for what is too long for a name
                return place
    return None


def is_absolute(written: str) -> bool:
    """Whether a path, in the notation of any system, begins at a root or drive."""
    return bool(PureWindowsPath(written).anchor)


def parts_of(written: str) -> tuple[str, ...]:
    """The parts of a path in the notation of any system, without root, drive and ``..``."""
    is_windows = "\\" in written or PureWindowsPath(written).drive
    path = PureWindowsPath(written) if is_windows else PurePosixPath(written)
    return tuple(part for part in path.parts if part not in (path.anchor, ".."))


def is_file(path: Path) -> bool:
    """Whether there is such a file; False, too, for what cannot be the name of one, where `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113
