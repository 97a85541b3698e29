"""The images to predict on: from files, folders, lists, glob patterns and videos, one frame at a time."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.errors import DataError
from data.formats.image import read_image
from data.formats.moved_paths import is_file
from data.indexing.listing import IMAGE_SUFFIXES
from engine.errors import ConfigError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
LIST_SUFFIX = ".txt"
RESULTS = "predictions.json"
"""A folder with this file has the images of an earlier prediction, which are not sources."""
OnError = Callable[[DataError], None]
"""Receives the error of a file that cannot be read. The file is then left out."""


@dataclass
class Frame:
    """One image to predict on."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    path: Path
    """The file of the image."""
    stem: str
    """Name of the results. No two frames have the same one, not even in another case."""
    number: int | None = None
    """Number of the frame in its video, from 1; None for an image file."""
    fps: float = 0.0
    """Frames per second of the video."""


def find_files(*sources: str, on_error: OnError | None = None) -> list[Path]:
    """The images and videos of all sources, each once, sorted by name within a source.

    A folder is searched with its subfolders, without hidden files (macOS leaves ``._x.jpg``), linked folders and
    earlier predictions. A list file has one path per line, relative to the list file.

    Args:
        sources: Each an image, a folder, a list file, a glob pattern or a video.
        on_error: Receives the error of a folder that is left out; None raises the error.

    Raises:
        ConfigError: If a source has no image or video.
    """
    found = [file for source in sources for file in _find(source, on_error or _raise)]
    return list(dict.fromkeys(found))


def _find(source: str, on_error: OnError) -> list[Path]:
    path = Path(source).expanduser()
    if is_file(path):
        files = _listed(path) if path.suffix.lower() == LIST_SUFFIX else [path]
    elif source and os.path.isdir(path):  # noqa: PTH112  Path raises for what cannot be a name
        files = _in_folder(path, on_error)
    elif source.isdecimal() or "://" in source:
        rule = "cameras and streams are not supported. Record a video or images, and give these."
        raise ConfigError(f"--source: {source}: {rule}")
    else:
        names = [] if "\0" in source else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  may be absolute
        files = [Path(name) for name in names if _is_known(Path(name)) and is_file(Path(name))]
    if not files:
        kinds = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise ConfigError(f"--source: {source}: no image or video. Give a file, folder or pattern of {kinds}")
    return files


def _in_folder(folder: Path, on_error: OnError) -> list[Path]:
    def refuse(error: OSError) -> None:
        on_error(DataError(f"{error.filename}: cannot be read ({error.strerror}). Allow reading it."))

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        if RESULTS in names and Path(place) != folder:
            folders.clear()
            continue
        files += [Path(place, name) for name in names if name[0] != "." and _is_known(Path(name))]
        for link in (path for name in folders if (path := Path(place, name)).is_symlink()):
            on_error(DataError(f"{link}: a linked folder is not followed. Give it with --source as well."))
    return sorted(files)


def _listed(file: Path) -> list[Path]:
    """The paths in a list file; none if no line is an image or video, as in a label file."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--source: {file}: cannot be read ({error}). Give a list of paths in UTF-8.") from None
    paths = [file.parent / line for line in lines if line]
    return paths if any(map(_is_known, paths)) else []


def read_frames(files: list[Path], on_error: OnError | None = None) -> Iterator[Frame]:
    """Every frame of every video and every image, decoded one at a time.

    Args:
        files: From `find_files`.
        on_error: Receives the error of a file that is left out; None raises the error.
    """
    on_error = on_error or _raise
    used: set[str] = set()
    for path in sorted(files, key=lambda path: not _is_video(path)):  # videos keep their names before images do
        stem = path.stem if _key(path.stem) not in used else f"{path.stem}_{path.suffix[1:]}"
        number = 2
        while _key(stem) in used:
            stem, number = f"{path.stem}_{number}", number + 1
        used.add(_key(stem))
        try:
            for frame in _read_video(path, stem) if _is_video(path) else [Frame(read_image(path), path, stem)]:
                used.add(_key(frame.stem))
                yield frame
        except DataError as error:
            on_error(error)


def _read_video(path: Path, stem: str) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(path))
    fps, number = video.get(cv2.CAP_PROP_FPS), 0
    try:
        while True:
            is_read, image = video.read()
            if not is_read:
                break
            number += 1
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), path, f"{stem}_{number:06d}", number, fps or 25.0)
    finally:
        video.release()
    if number == 0:
        raise DataError(f"{path}: no frame can be read. Convert the video to MP4 with H.264.")


def _raise(error: DataError) -> None:
    raise error


def _key(stem: str) -> str:
    """A key that is equal for names that some file systems do not distinguish: ``A`` and ``a``, two forms of ``é``."""
    return unicodedata.normalize("NFC", stem).casefold()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
