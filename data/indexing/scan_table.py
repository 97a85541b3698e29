"""Packed arrays about each listed image of a split: the rows that the index file keeps.

Shapes: I images, N boxes of all images together, K kinds of notices.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.formats.labels import MAYBE_POSE, NOTICE_KINDS, REDUCED

MAX_NOTICES = 2**16 - 1  # of one kind in one image


class Reject(NamedTuple):
    """The reason why an image cannot be used."""

    is_label: bool
    """The labels are wrong, which only the user can correct; else the image, which can be left out."""
    message: str
    """The line for the user."""


class Origin(NamedTuple):
    """The index file that holds a table's arrays."""

    file: Path
    key: str
    checksum: int
    """CRC-32 of all columns."""


class Source(NamedTuple):
    """The source of a run of rows: a folder, a list file or a COCO file."""

    path: str
    stamp: tuple[int, int]
    """Size in bytes and modification time in nanoseconds of a file; -1 twice for a folder."""
    num_images: int


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Paths, boxes and sizes of images."""

    path_bytes: np.ndarray
    """uint8, the paths of all images as the file system encodes them, one after the other."""
    path_offsets: np.ndarray
    """int64 (I + 1,), where each path begins in ``path_bytes``."""
    boxes_xyxy_rel: np.ndarray
    """float32 (N, 4), corner boxes in fractions of the image's width and height."""
    classes: np.ndarray
    """int32 (N,)."""
    box_offsets: np.ndarray
    """int64 (I + 1,), where each image's boxes begin."""
    sizes_hw: np.ndarray
    """int32 (I, 2), upright height and width of each file in pixels; zeros if unknown."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.path_offsets) - 1

    def path(self, image: int) -> str:
        """Path of an image file."""
        start, stop = self.path_offsets[image : image + 2]
        return os.fsdecode(self.path_bytes[start:stop].tobytes())


@dataclass(frozen=True, eq=False)
class ScanTable(PackedImages):
    """One row for each listed image; `ARRAYS` names the packed columns.

    Memory: about 20 bytes a box, and 72 bytes and the path an image.
    """

    stamps: np.ndarray
    """int64 (I, 4), size and modification time of the image file, then of the label file; -1 without one."""
    notices: np.ndarray
    """uint16 (I, K), number of objects that were put right, by `NOTICE_KINDS`; at most `MAX_NOTICES`."""
    rejects: dict[int, Reject] = field(default_factory=dict)
    """The unusable rows."""
    sources: tuple[Source, ...] = ()
    """The sources of the rows, in order."""
    origin: Origin | None = None
    """The file that the arrays are mapped from; None if they are in memory only."""

    def take(self, rows: np.ndarray) -> ScanTable:
        """A table of the given rows, in that order; copies."""
        path_index, path_offsets = ragged_rows(self.path_offsets, rows)
        box_index, box_offsets = ragged_rows(self.box_offsets, rows)
        rejected = np.flatnonzero(np.isin(rows, list(self.rejects)))
        return ScanTable(
            path_bytes=self.path_bytes[path_index],
            path_offsets=path_offsets,
            boxes_xyxy_rel=self.boxes_xyxy_rel[box_index],
            classes=self.classes[box_index],
            box_offsets=box_offsets,
            sizes_hw=self.sizes_hw[rows],
            stamps=self.stamps[rows],
            notices=self.notices[rows],
            rejects={new: self.rejects[int(rows[new])] for new in rejected.tolist()},
        )


ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {  # column: dtype, shape of one entry
    "path_bytes": ("uint8", ()),
    "path_offsets": ("int64", ()),
    "boxes_xyxy_rel": ("float32", (4,)),
    "classes": ("int32", ()),
    "box_offsets": ("int64", ()),
    "sizes_hw": ("int32", (2,)),
    "stamps": ("int64", (4,)),
    "notices": ("uint16", (len(NOTICE_KINDS),)),
}
OFFSETS = ("path_offsets", "box_offsets")


def notice_counts(table: ScanTable) -> dict[str, int]:
    """Number of objects that were put right, by those of `NOTICE_KINDS` that occur.

    A polygon can look like a box with key points by chance, so `MAYBE_POSE` counts only if it holds for all polygons.
    """
    totals = table.notices.sum(axis=0, dtype=np.int64).tolist()
    counts = {kind: count for kind, count in zip(NOTICE_KINDS, totals, strict=True) if count}
    if counts.get(MAYBE_POSE) != counts.get(REDUCED):
        counts.pop(MAYBE_POSE, None)
    return counts


def concatenate(tables: Sequence[ScanTable]) -> ScanTable:
    """One table after the other, without their sources."""
    columns: dict[str, Any] = {}
    for name, (dtype, shape) in ARRAYS.items():
        arrays = [getattr(table, name) for table in tables]
        if name in OFFSETS:
            arrays = [np.diff(array) for array in arrays]
        empty = np.empty((0, *shape), dtype)
        columns[name] = np.concatenate([empty, *arrays], dtype=dtype)
        if name in OFFSETS:
            columns[name] = offsets_of(columns[name])
    rejects: dict[int, Reject] = {}
    start = 0
    for table in tables:
        rejects |= {start + row: reject for row, reject in table.rejects.items()}
        start += len(table)
    return ScanTable(**columns, rejects=rejects)


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """The start of each of several runs, and the end of the last; int64 (len + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def ragged_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of every entry of the given rows of a packed column, and the offsets of the result."""
    counts = np.diff(offsets)[rows]
    new_offsets = offsets_of(counts)
    index = np.arange(new_offsets[-1]) + np.repeat(offsets[:-1][rows] - new_offsets[:-1], counts)
    return index, new_offsets
