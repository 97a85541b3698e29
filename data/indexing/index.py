"""All images and boxes of one split, in a handful of packed arrays.

A million small Python objects cost gigabytes, and every worker process that looks at one of them copies the
page it lies on (the reference count is a write). Here image ``i`` owns
``path_offsets[i]:path_offsets[i + 1]`` of one long byte string and ``box_offsets[i]:box_offsets[i + 1]`` of
one long table: six arrays, whatever the number of images. With a cache folder they lie in a file that is mapped
into memory, so that processes share them, and only files that have changed are read again.

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
from data.indexing.scan_table import Origin, ScanTable, Source, concatenate, notice_counts, offsets_of, ragged_rows

COCO_SUFFIX = ".json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The images of one split and their boxes.

    Memory: about 20 bytes a box, and 24 bytes and the path an image.
    """

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
    """int32 (I, 2), upright height and width of each image file in pixels."""
    origin: Origin | None = None
    """The index file that the arrays are mapped from, if any: other processes map it too."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.path_offsets) - 1

    def path(self, image: int) -> str:
        """Path of an image file."""
        start, stop = self.path_offsets[image : image + 2]
        return os.fsdecode(self.path_bytes[start:stop].tobytes())

    def labels(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (float32 (n, 4), corners in fractions of the image) and classes (int32 (n,)): views."""
        rows = slice(*self.box_offsets[image : image + 2])
        return self.boxes_xyxy_rel[rows], self.classes[rows]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the name of the index file rather than its content."""
        if self.origin is not None:
            return _reload_index, (self.origin,)
        return ImageIndex, tuple(getattr(self, column.name) for column in fields(self))


def build_index(dataset: DatasetYaml, split: str, cache_folder: Path | None = None, workers: int = 1) -> ImageIndex:
    """List the images of a split, in a fixed order, and read all their labels.

    Images that cannot be used are left out; they, and what was repaired in the labels, are logged as counted
    warnings. Labels that are wrong are refused.

    Args:
        dataset: The data set; only read.
        split: ``train``, ``val`` or ``test``.
        cache_folder: Keeps the index here, in a file that is mapped into memory and made again for what has
            changed; None keeps it in memory only.
        workers: Processes that read many images' headers and labels.

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

    Args:
        dataset: As in `build_index`.
        split: As in `build_index`.
        table: What `scan_split` has found.

    Raises:
        DataError: Naming the first of them.
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
        DataError: Saying so.
    """
    if not len(index.classes):
        raise DataError(
            f"{dataset.file}: no object in any of the {len(index)} train images. Label some of them "
            f"(python -m engine.inspect --root {dataset.file} shows what was read)."
        )


def scan_split(dataset: DatasetYaml, split: str, cache_folder: Path | None = None, workers: int = 1) -> ScanTable:
    """What is known about every listed image of a split, whether it can be used or not.

    Args:
        dataset: As in `build_index`.
        split: As in `build_index`.
        cache_folder: As in `build_index`.
        workers: As in `build_index`.

    Raises:
        DataError: If a source cannot be listed; what is wrong with single images is in the table.
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
    """The table of a split: rows of ``known`` where the files have not changed, scanned ones elsewhere."""
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
            listing = list_coco(source, [known.path(row) for row in candidates])  # the same file names the same images
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
    """The known row of each listed image whose files have not changed, int64; -1 for those to scan.

    Rejected rows are scanned again: what was wrong may have been put right without changing a file.
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
    """Whether these rows hold exactly these paths; compared in one piece."""
    offsets = known.path_offsets[rows.start : rows.stop + 1]
    if len(rows) != len(encoded) or not np.array_equal(np.diff(offsets), [len(path) for path in encoded]):
        return False
    return known.path_bytes[offsets[0] : offsets[-1]].tobytes() == b"".join(encoded)


def _merge(known: ScanTable, scanned: ScanTable, rows: np.ndarray, sources: tuple[Source, ...]) -> ScanTable:
    """The given rows of both tables, one after the other; ``known`` itself if that is the same."""
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
    """Tell what was found elsewhere, left out and put right."""
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
    """The rows of a table that can be used; rejected ones have no boxes, so the boxes stay where they are."""
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
        DataError: If the file was made again in the meantime.
    """
    return index_of(reload_table(origin))
