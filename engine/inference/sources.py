"""What there is to predict on: pictures, folders, lists, glob patterns and videos, frame by frame."""

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
"""A folder that holds it holds drawn copies: its pictures are none to predict on."""
OnError = Callable[[DataError], None]
"""Takes what is wrong with a file that cannot be read."""


@dataclass
class Frame:
    """One picture to predict on."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    path: Path
    """The file that it is from."""
    stem: str
    """What to call what is written about it; no two frames of a source share it, whatever their case."""
    number: int | None = None
    """Of a frame in a video, from 1."""
    fps: float = 0.0
    """Of the video."""


def find_files(*sources: str, on_error: OnError | None = None) -> list[Path]:
    """Pictures and videos that some sources mean, each once, in order of their names within a source.

    A folder is searched to its depth, without hidden files (macOS leaves ``._x.jpg``) and linked folders, as in
    training, and without folders of earlier predictions. A list file names one a line, relative to itself.

    Args:
        sources: A picture, a folder, a list file, a glob pattern or a video each.
        on_error: Takes what is wrong with a folder that is passed over; it is raised without.

    Raises:
        ConfigError: If a source holds none.
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
        rule = "cameras and streams are not supported"
        raise ConfigError(f"--source: {source}: {rule}: record a video or pictures first, and give these")
    else:
        names = [] if "\0" in source else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  may be absolute
        files = [Path(name) for name in names if _is_known(Path(name)) and is_file(Path(name))]
    if not files:
        kinds = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise ConfigError(f"--source: {source}: no picture or video there: give a file, folder or pattern of {kinds}")
    return files


def _in_folder(folder: Path, on_error: OnError) -> list[Path]:
    def refuse(error: OSError) -> None:
        on_error(DataError(f"{error.filename}: cannot be read ({error.strerror}): allow reading it"))

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        if RESULTS in names and Path(place) != folder:
            folders.clear()
            continue
        files += [Path(place, name) for name in names if name[0] != "." and _is_known(Path(name))]
        for link in (path for name in folders if (path := Path(place, name)).is_symlink()):
            on_error(DataError(f"{link}: a linked folder is not followed: name it with --source, too"))
    return sorted(files)


def _listed(file: Path) -> list[Path]:
    """What a list file names, there or not; nothing if it names no picture at all, as the labels of one."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--source: {file}: cannot be read ({error}): give a list of paths in UTF-8") from None
    paths = [file.parent / line for line in lines if line]
    return paths if any(map(_is_known, paths)) else []


def read_frames(files: list[Path], on_error: OnError | None = None) -> Iterator[Frame]:
    """Every frame of every video, and every picture, decoded one at a time.

    Args:
        files: From `find_files`.
        on_error: Takes what is wrong with a file that cannot be read, and it is passed over; it is raised without.
    """
    on_error = on_error or _raise
    used: set[str] = set()
    for path in sorted(files, key=lambda path: not _is_video(path)):  # what they were cut into may lie beside them
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
        raise DataError(f"{path}: no frame of it can be read: convert it to MP4 with H.264")


def _raise(error: DataError) -> None:
    raise error


def _key(stem: str) -> str:
    """The same for names that are one on some file systems: ``A`` and ``a``, and both forms of ``é``."""
    return unicodedata.normalize("NFC", stem).casefold()


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
