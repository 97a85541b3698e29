"""Lists the images of a source, and stamps every file: a file with the same stamp need not be read again.

A source is a folder of images, a list file (.txt) or a COCO file (.json). Each image of a folder or a list has a label
file, in a folder that mirrors that of the images, or beside the image:

    images/x.jpg       labels/x.txt   (YOLO)
    JPEGImages/x.jpg   Annotations/x.xml   (Pascal VOC; also for ``images``)
    x.jpg              x.txt or x.xml

Names of folders count in any case. Paths are strings, because a million `Path` objects take a minute.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.formats.moved_paths import Place, find_place, is_absolute, is_file, parts_of
from data.formats.text import read_text

_JPEG_SUFFIXES = frozenset({".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"})
_NETPBM_SUFFIXES = frozenset({".pbm", ".pgm", ".pnm", ".ppm"})
_OTHER_SUFFIXES = frozenset({".avif", ".bmp", ".dib", ".gif", ".png", ".ras", ".tif", ".tiff", ".webp"})
IMAGE_SUFFIXES = _JPEG_SUFFIXES | _NETPBM_SUFFIXES | _OTHER_SUFFIXES  # what OpenCV decodes to 8 bits
_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw"})
_OTHER_UNREADABLE = frozenset({".exr", ".hdr", ".heic", ".heif", ".ico", ".jxl", ".pfm", ".psd", ".tga"})
UNREADABLE_SUFFIXES = _RAW_SUFFIXES | _OTHER_UNREADABLE  # images that are passed over with a warning
LEFTOVER_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # hold small copies of images, as hidden folders do
MIRRORS = (  # folder of images, folder of labels, suffix of labels; the first existing file is taken
    ("images", "labels", ".txt"),
    (None, None, ".txt"),
    ("JPEGImages", "Annotations", ".xml"),
    ("images", "Annotations", ".xml"),
    (None, None, ".xml"),
)
NO_STAMP = (-1, -1)

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """The images of one source."""

    paths: list[str]
    stamps: np.ndarray
    """int64 (I, 4), size and modification time of each image, then of its label file; -1 without one."""


class _PassedOver(NamedTuple):
    """Files of a folder that are not used as the user may expect."""

    links: list[str]
    """Linked folders."""
    unreadable: list[str]
    """Images that OpenCV cannot decode."""
    twins: list[str]
    """Images that share their label file with another: ``x.png`` beside ``x.jpg``."""

    def tell(self, folder: Path) -> None:
        """Warn in one line for each kind."""
        for paths, line in (
            (self.links, "linked folders are not followed, such as %s. Name them in data.yaml."),
            (self.unreadable, "images are passed over, such as %s: OpenCV cannot read them. Convert them to JPEG."),
            (self.twins, "images share their label file with another, such as %s. Remove or rename one of them."),
        ):
            if paths:
                _tell_once(f"{folder}: {len(paths)} {line % paths[0]}")


@functools.lru_cache(maxsize=1024)
def _tell_once(line: str) -> None:
    """Warn, but not again when another command lists the same folder."""
    logger.warning("%s", line)


def list_folder(folder: Path) -> Listing:
    """Images at any depth, sorted; without hidden files and folders (macOS leaves ``._x.jpg``).

    Linked folders are not followed, because a link can lead to a folder above it. Warnings count them, images that
    cannot be decoded, and images that share a label file.

    Raises:
        DataError: If a folder cannot be read or there is no image.
    """
    paths: list[str] = []
    stamps: list[tuple[int, int]] = []
    passed_over = _PassedOver([], [], [])
    for entry in _walk(str(folder), passed_over):
        paths.append(entry.path)
        stamps.append(stamp_of(entry))
    passed_over.tell(folder)
    _check_not_empty(folder, paths)
    return Listing(paths, _with_labels(paths, stamps))


def list_file(file: Path, root: Path) -> Listing:
    """Images named in a list file, one a line, relative to the file or to the data set's root.

    The lists of Pascal VOC (``ImageSets/Main/train.txt``) name images of ``JPEGImages`` without a suffix. Paths of
    another machine are found by their end, with a warning.

    Raises:
        DataError: If an image does not exist, the file is no text or names no image.
    """
    if file.suffix.lower() != ".txt":
        raise DataError(f"{file}: unknown kind. Give a folder of images, a list file (.txt) or a COCO file (.json).")
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Give a list of image paths in UTF-8.") from None
    paths: list[str] = []
    place: Place | None = None
    for number, line in enumerate(lines, start=1):
        if entry := line.strip():
            image = next((path for path in _list_candidates(file, root, entry) if is_file(path)), None)
            if image is None:
                num_kept = 1 if is_absolute(entry) else len(parts_of(entry))
                place = place or find_place((file.parent, root), entry, num_kept)
                image = place.path(entry) if place and is_file(place.path(entry)) else None
            if image is None:
                raise DataError(f"{file}:{number}: no image {entry[:200]!r}. Correct or remove the line.")
            paths.append(str(image))
    if place:
        _tell_once(f"{file}: the paths belong to another machine. {place.folder} is used instead.")
    _check_not_empty(file, paths)
    return Listing(paths, _with_labels(paths, [_stamp_of_path(path) for path in paths]))


def list_coco(file: Path, paths: list[str]) -> Listing:
    """The images of a COCO file, which is the label file of all of them."""
    stamps = np.array([_stamp_of_path(path) for path in paths], np.int64).reshape(-1, 2)
    return Listing(paths, np.concatenate([stamps, np.full_like(stamps, stamp_of(file))], axis=1))


def stamp_of(file: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds; `NO_STAMP` for anything but a file, such as a dead link."""
    try:
        return _stamp(file.stat())
    except OSError:
        return NO_STAMP


def label_candidates(image: str) -> list[str]:
    """Possible label files of an image, the likeliest first."""
    folder, _, name = image.rpartition(os.sep)
    stem = name.rpartition(".")[0] or name
    return [f"{labels}{stem}{suffix}" for labels, suffix in _label_folders(folder)]


@functools.lru_cache(maxsize=1024)
def _label_folders(images: str) -> tuple[tuple[str, str], ...]:
    """Possible folders (with the separator) and suffixes of the labels of a folder, the likeliest first."""
    parts = Path(images).parts
    likely, others = [], []
    for mirrored, labels, suffix in MIRRORS:
        if mirrored is None or labels is None:
            likely.append((images + os.sep, suffix))
            continue
        positions = [position for position, part in enumerate(parts) if part.lower() == mirrored.lower()]
        for position in positions[-1:]:
            names = _in_every_case(labels, like=parts[position])
            folders = [f"{Path(*parts[:position], name, *parts[position + 1 :])}{os.sep}" for name in names]
            likely.append((folders[0], suffix))
            others += [(folder, suffix) for folder in folders[1:]]
    return tuple(dict.fromkeys(likely + others))


def _in_every_case(name: str, like: str) -> list[str]:
    """The name in the case of ``like`` (``Labels`` for ``Images``), then in the other cases."""
    same = name.upper() if like.isupper() else name.capitalize() if like.istitle() else name
    return list(dict.fromkeys([same, name.lower(), name.capitalize(), name.upper()]))


def find_label_file(image: str) -> str | None:
    """The label file of an image; None without one."""
    return next((file for file in label_candidates(image) if _stamp_of_path(file) != NO_STAMP), None)


def _walk(folder: str, passed_over: _PassedOver) -> Iterator[os.DirEntry[str]]:
    """The image entries below a folder; adds to ``passed_over``."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}). Allow reading it or leave it out.") from None
    folders = []
    stems: set[str] = set()
    for entry in found:
        stem, _, suffix = entry.name.rpartition(".")
        suffix = f".{suffix.lower()}"
        if entry.name[0] == "." or entry.name in LEFTOVER_FOLDERS:
            continue
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
        elif suffix in IMAGE_SUFFIXES:
            if stem in stems:
                passed_over.twins.append(entry.path)
            stems.add(stem)
            yield entry
        elif suffix in UNREADABLE_SUFFIXES:
            passed_over.unreadable.append(entry.path)
        elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112  DirEntry and Path raise for a link to itself
            passed_over.links.append(entry.path)
    for path in folders:
        yield from _walk(path, passed_over)


def _list_candidates(file: Path, root: Path, entry: str) -> list[Path]:
    candidates = [file.parent / entry, root / entry]
    if "ImageSets" in file.parts:
        base = next(parent.parent for parent in file.parents if parent.name == "ImageSets")
        candidates += [base / "JPEGImages" / f"{entry}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
    return candidates


def _check_not_empty(source: Path, paths: list[str]) -> None:
    if not paths:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{source}: contains no image. Give files that end in {suffixes}.")


def _with_labels(paths: list[str], stamps: list[tuple[int, int]]) -> np.ndarray:
    labels = [_label_stamp(path) for path in paths]
    return np.concatenate([np.array(stamps, np.int64), np.array(labels, np.int64)], axis=1)


def _label_stamp(image: str) -> tuple[int, int]:
    return next((found for file in label_candidates(image) if (found := _stamp_of_path(file)) != NO_STAMP), NO_STAMP)


def _stamp_of_path(file: str) -> tuple[int, int]:
    try:
        return _stamp(os.stat(file))  # noqa: PTH116  Path takes four times as long
    except (OSError, ValueError):  # ValueError: names with a zero byte
        return NO_STAMP


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else NO_STAMP
