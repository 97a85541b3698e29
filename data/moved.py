r"""Finds what a path of another machine means here: the same end of the path, below a folder of this machine.

``/content/boards/train/images`` and ``C:\boards\train\images`` are both ``train/images`` beside data.yaml, once the
data set has been copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath


class MovedPaths:
    """Finds paths of one file; what was left out of the first one that is found is left out of the others, too.

    A shorter end would be another file: ``train/1.jpg`` must not become ``1.jpg``.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Prepare.

        Args:
            folders: Where the ends of paths may begin, the likeliest first.
        """
        self._folders = tuple(dict.fromkeys(folders))
        self._place: tuple[Path, int] | None = None

    def find(self, written: str, num_kept: int = 1) -> Path | None:
        """What is there for a path as it is written.

        Args:
            written: The path, in the notation of any system.
            num_kept: How many parts at its end must stay.

        Returns:
            The path of this machine; None if nothing is there.
        """
        parts = parts_of(written)
        places = [self._place] if self._place else _places(self._folders, len(parts) - num_kept)
        for folder, num_left_out in places:
            candidate = folder.joinpath(*parts[num_left_out:])
            if num_left_out < len(parts) and os.path.exists(candidate):  # noqa: PTH110  Path raises for long names
                self._place = folder, num_left_out
                return candidate
        return None


def is_absolute(written: str) -> bool:
    """Whether a path, in the notation of any system, begins at a root or drive."""
    return bool(PureWindowsPath(written).anchor)


def parts_of(written: str) -> tuple[str, ...]:
    """The parts of a path in the notation of any system, without root, drive and ``..``."""
    is_windows = "\\" in written or PureWindowsPath(written).drive
    path = PureWindowsPath(written) if is_windows else PurePosixPath(written)
    return tuple(part for part in path.parts if part not in (path.anchor, ".."))


def _places(folders: Sequence[Path], max_left_out: int) -> Iterator[tuple[Path, int]]:
    """Where to look, for the longest end first: a folder, and how many parts are left out."""
    for num_left_out in range(max_left_out + 1):
        for folder in folders:
            yield folder, num_left_out
