"""What there is to predict on: a picture, a folder, a glob pattern or a video, frame by frame."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.image import read_image
from data.listing import IMAGE_SUFFIXES
from engine.errors import ConfigError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass
class Frame:
    """One picture to predict on."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    path: Path
    """The file that it is from."""
    stem: str
    """What to call what is written about it; no two frames of a source share it."""
    number: int | None = None
    """Of a frame in a video, from 1."""
    fps: float = 0.0
    """Of the video."""


def find_files(source: str) -> list[Path]:
    """Pictures and videos that a source means, in order of their names; a folder is searched to its depth.

    Raises:
        ConfigError: If there are none.
    """
    path = Path(source)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True))  # noqa: PTH207  may be absolute
    files = [file for file in files if _is_known(file)]
    if not files:
        kinds = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise ConfigError(f"--source: {source}: no picture or video there: give a file, folder or pattern of {kinds}")
    return files


def read_frames(files: list[Path]) -> Iterator[Frame]:
    """Every frame of every video, and every picture, decoded one at a time.

    Raises:
        DataError: If a picture cannot be read.
        ConfigError: If a video cannot.
    """
    used: set[str] = set()
    for path in sorted(files, key=lambda path: not _is_video(path)):  # what they were cut into may lie beside them
        stem = path.stem if path.stem not in used else f"{path.stem}_{path.suffix[1:]}"
        number = 2
        while stem in used:
            stem, number = f"{path.stem}_{number}", number + 1
        used.add(stem)
        for frame in _read_video(path, stem) if _is_video(path) else [Frame(read_image(path), path, stem)]:
            used.add(frame.stem)
            yield frame


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
        raise ConfigError(f"--source: {path}: no frame of it can be read: convert it to MP4 with H.264")


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
