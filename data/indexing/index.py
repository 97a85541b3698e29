"""All images and boxes of one split, in a few packed arrays.

A million small Python objects take gigabytes, and each worker that reads one copies its memory page, because the
reference count is a write. Here image ``i`` owns ``path_offsets[i]:path_offsets[i + 1]`` of one byte string and
``box_offsets[i]:box_offsets[i + 1]`` of one table. With a cache folder the arrays lie in a file that all processes map
into memory, and only changed files are read again.

Shapes: I images, N boxes of all images together.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.formats.coco import CocoFile
from data.formats.dataset_yaml import DatasetYaml
from data.formats.labels import UNLABELED
from data.indexing.index_file import IndexFileError, index_file_path, load_table, reload_table, save_table
from data.indexing.listing import Listing, label_candidates, list_coco, list_file, list_folder, stamp_of
from data.indexing.scan import LabelRules, ScanTask, scan_images
from data.indexing.scan_table import (
    Origin,
    PackedImages,
    ScanTable,
    Source,
    concatenate,
    notice_counts,
    offsets_of,
    ragged_rows,
)

COCO_SUFFIX = ".json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageIndex(PackedImages):
    """The usable images of one split and their boxes.

    Memory: about 20 bytes a box, and 24 bytes and the path an image.
    """

    origin: Origin | None = None
    """The index file that the arrays are mapped from; None if they are in memory only."""

    def labels(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (float32 (n, 4), corners in fractions of the image) and classes (int32 (n,)); views."""
        rows = slice(*self.box_offsets[image : image + 2])
        return self.boxes_xyxy_rel[rows], self.classes[rows]

    def images_per_class(self, num_classes: int) -> np.ndarray:
        """Number of images with an object of each class, int64 (num_classes,)."""
        image_of_box = np.repeat(np.arange(len(self)), np.diff(self.box_offsets))
        pairs = np.unique(image_of_box * num_classes + self.classes)  # each class once per image
        return np.bincount(pairs % num_classes, minlength=num_classes)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the name of the index file, not its content."""
        if self.origin is not None:
            return _reload_index, (self.origin,)
        return ImageIndex, tuple(getattr(self, column.name) for column in fields(self))


def build_index(dataset: DatasetYaml, split: str, cache_folder: Path | None = None, workers: int = 1) -> ImageIndex:
    """List the images of a split in a fixed order, and read all their labels.

    Unusable images are left out. One warning counts them, another what was put right in the labels. Wrong labels are
    refused.

    Args:
        dataset: The data set; only read.
        split: ``train``, ``val`` or ``test``.
        cache_folder: Keeps the index in a file there, which is updated for changed files; None keeps it in memory.
        workers: Processes that read headers and labels of many images.

    Returns:
        The images in the order of the sources, by path within a folder.

    Raises:
        DataError: If the split has no usable image or no label files, or a label is malformed.
    """
    table = scan_split(dataset, split, cache_folder, workers)
    check_split(dataset, split, table)
    _warn(dataset, split, table)
    return index_of(table)


def check_split(dataset: DatasetYaml, split: str, table: ScanTable) -> None:
    """Refuse a split with wrong labels, without a usable image, or without a label file.

    Raises:
        DataError: For the first of them.
    """
    labels = [reject.message for reject in table.rejects.values() if reject.is_label]
    if labels:
        others = f" {len(labels) - 1} more label files are wrong: {_hint(dataset)}." if len(labels) > 1 else ""
        raise DataError(f"{labels[0]}{others}")
    if len(table.rejects) == len(table):
        first_reject = next(iter(table.rejects.values())).message
        raise DataError(f"{dataset.file}: none of the {len(table)} {split} images can be used: {first_reject}")
    if notice_counts(table).get(UNLABELED) == len(table) - len(table.rejects):
        first = next(row for row in range(len(table)) if row not in table.rejects)
        expected = label_candidates(table.path(first))[0]
        raise DataError(
            f"{dataset.file}: no {split} image has a label file. {table.path(first)} needs {expected} (or a .xml file "
            "of Pascal VOC; for COCO, name the .json file in data.yaml)."
        )


def check_objects(dataset: DatasetYaml, index: ImageIndex) -> None:
    """Refuse training images without a single object.

    Raises:
        DataError: If there is no object.
    """
    if not len(index.classes):
        raise DataError(
            f"{dataset.file}: no object in any of the {len(index)} train images. Label some of them "
            f"(python -m engine.inspect --root {dataset.file} shows what was read)."
        )


def scan_split(dataset: DatasetYaml, split: str, cache_folder: Path | None = None, workers: int = 1) -> ScanTable:
    """A row for every listed image of a split, usable or not; arguments as in `build_index`.

    Raises:
        DataError: If a source cannot be listed; errors of single images are in the table.
    """
    sources = dataset.sources(split)
    what = {"names": dataset.names, "key points": dataset.num_keypoint_values, "root": str(dataset.root)}
    key = json.dumps(what | {"sources": [str(source) for source in sources]})
    file = index_file_path(cache_folder, dataset.file, split) if cache_folder else None
    known = _load_if_valid(file, key)
    table = _update(dataset, split, known, workers)
    if file is None or table is known:
        return table
    del known  # Windows cannot replace a file that is mapped
    try:
        save_table(file, table, key)
        return load_table(file, key)  # mapped now, and shared between processes
    except (OSError, IndexFileError) as error:
        logger.warning("%s: the index cannot be written (%s). Each start reads the labels again.", file, error)
        return table


def _load_if_valid(file: Path | None, key: str) -> ScanTable | None:
    if file is None or not file.exists():
        return None
    try:
        return load_table(file, key)
    except IndexFileError as error:
        logger.warning("%s. The index is made again.", error)
        return None


def _update(dataset: DatasetYaml, split: str, known: ScanTable | None, workers: int) -> ScanTable:
    """The table of a split: rows of ``known`` for unchanged files, scanned rows for others."""
    rules = LabelRules(dataset.names, dataset.num_keypoint_values)
    known = known or concatenate([])
    known_rows = _rows_by_source(known)
    coco = functools.cache(lambda file: CocoFile(file, dataset.root, dataset.names))
    tasks: list[ScanTask] = []
    rows: list[np.ndarray] = []
    sources: list[Source] = []
    for source in dataset.sources(split):
        stamp = stamp_of(source)
        candidates = known_rows.get((str(source), stamp), range(0))
        if source.suffix.lower() == COCO_SUFFIX:
            listing = list_coco(source, [known.path(row) for row in candidates])  # same file, same images
            if not (listing.stamps[:, 0] >= 0).all() or not listing.paths:  # they may have moved
                listing = list_coco(source, coco(source).paths)
        else:
            listing = list_folder(source) if source.is_dir() else list_file(source, dataset.root)
            candidates = known_rows.get((str(source), None), range(0))
        found = _match(known, candidates, listing)
        for position in np.flatnonzero(found < 0):
            path = listing.paths[position]
            objects = coco(source).objects(path) if source.suffix.lower() == COCO_SUFFIX else None
            found[position] = len(known) + len(tasks)
            tasks.append(ScanTask(path, listing.stamps[position], objects))
        rows.append(found)
        sources.append(Source(str(source), stamp, len(found)))
    scanned = scan_images(tasks, rules, workers, f"scanning {split}")
    return _merge(known, scanned, np.concatenate(rows), tuple(sources))


def _rows_by_source(known: ScanTable) -> dict[tuple[str, tuple[int, int] | None], range]:
    """The rows of each source, by its path alone and by its path and stamp."""
    found: dict[tuple[str, tuple[int, int] | None], range] = {}
    start = 0
    for source in known.sources:
        rows = range(start, start + source.num_images)
        found[source.path, source.stamp] = found[source.path, None] = rows
        start = rows.stop
    return found


def _match(known: ScanTable, candidates: range, listing: Listing) -> np.ndarray:
    """The known row of each listed image whose files have not changed, int64; -1 for images to scan.

    Rejected rows are scanned again: the reason may be gone without a change of the file.
    """
    encoded = [os.fsencode(path) for path in listing.paths]
    rows = np.arange(candidates.start, candidates.stop)
    if not _holds_paths(known, candidates, encoded):
        row_of = {os.fsencode(known.path(row)): row for row in candidates}
        rows = np.array([row_of.get(path, -1) for path in encoded], np.int64)
    is_same = rows >= 0
    is_same[is_same] = (known.stamps[rows[is_same]] == listing.stamps[is_same]).all(axis=1)
    is_same &= ~np.isin(rows, list(known.rejects))
    return np.where(is_same, rows, -1)


def _holds_paths(known: ScanTable, rows: range, encoded: list[bytes]) -> bool:
    """Whether these rows hold exactly these paths; one comparison of all bytes."""
    offsets = known.path_offsets[rows.start : rows.stop + 1]
    if len(rows) != len(encoded) or not np.array_equal(np.diff(offsets), [len(path) for path in encoded]):
        return False
    return known.path_bytes[offsets[0] : offsets[-1]].tobytes() == b"".join(encoded)


def _merge(known: ScanTable, scanned: ScanTable, rows: np.ndarray, sources: tuple[Source, ...]) -> ScanTable:
    """The given rows of both tables, one after the other; ``known`` itself if the result is equal."""
    is_known = rows < len(known)
    if sources == known.sources and np.array_equal(rows[is_known], np.flatnonzero(is_known)):
        again = {int(row): scanned.rejects.get(int(rows[row]) - len(known)) for row in np.flatnonzero(~is_known)}
        if again == known.rejects:
            return known
    table = concatenate([known, scanned]) if len(known) else scanned
    if not np.array_equal(rows, np.arange(len(table))):
        table = table.take(rows)
    return dataclasses.replace(table, sources=sources, origin=None)


def _warn(dataset: DatasetYaml, split: str, table: ScanTable) -> None:
    """Warn about sources found elsewhere, images left out and objects put right."""
    for note in dataset.notes.get(split, ()):
        logger.warning("%s", note)
    if table.rejects:
        first = next(iter(table.rejects.values())).message
        logger.warning("%s: %d images left out: %s %s.", split, len(table.rejects), first, _hint(dataset))
    if counts := notice_counts(table):
        logger.warning("%s: %s", split, ", ".join(f"{count} {kind}" for kind, count in counts.items()))


def _hint(dataset: DatasetYaml) -> str:
    return f"python -m engine.inspect --root {dataset.file} lists them all"


def index_of(table: ScanTable) -> ImageIndex:
    """The usable rows of a table. Rejected rows have no boxes, so the box arrays stay as they are."""
    path_bytes, path_offsets = table.path_bytes, table.path_offsets
    rows = np.arange(len(table))
    if table.rejects:
        rows = np.setdiff1d(rows, list(table.rejects))
        path_index, path_offsets = ragged_rows(path_offsets, rows)
        path_bytes = path_bytes[path_index]
    return ImageIndex(
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        boxes_xyxy_rel=table.boxes_xyxy_rel,
        classes=table.classes,
        box_offsets=offsets_of(np.diff(table.box_offsets)[rows]) if table.rejects else table.box_offsets,
        sizes_hw=table.sizes_hw[rows] if table.rejects else table.sizes_hw,
        origin=table.origin,
    )


def _reload_index(origin: Origin) -> ImageIndex:
    """The same index in another process.

    Raises:
        DataError: If the file was replaced in the meantime.
    """
    return index_of(reload_table(origin))
