r"""Finds a path of another machine on this one: the same end of the path, below a folder of this machine.

``/content/boards/train/images`` and ``C:\boards\train\images`` both mean ``train/images`` beside the copied data.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple


class Place(NamedTuple):
    """Where paths of another machine lie on this one.

    A place that is found for one path of a file holds for all of its paths: with a shorter end ``train/1.jpg`` could
    become ``1.jpg``, which is another file.
    """

    folder: Path
    num_left_out: int
    """Number of parts to remove at the beginning of each path."""

    def path(self, written: str) -> Path:
        """The path on this machine."""
        return self.folder.joinpath(*parts_of(written)[self.num_left_out :])


def find_place(folders: Sequence[Path], written: str, num_kept: int = 1) -> Place | None:
    """Find a path of another machine by the longest end of it that exists here, with at least ``num_kept`` parts.

    The end may begin in any of the folders, the likeliest first; the path may be in the notation of any system.
    """
    for num_left_out in range(len(parts_of(written)) - max(num_kept, 1) + 1):
        for folder in folders:
            place = Place(folder, num_left_out)
            if os.path.exists(place.path(written)):  # noqa: PTH110  Path raises for names that are too long
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
    """Whether the file exists; False for impossible names, for which `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113
