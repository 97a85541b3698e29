"""Reads the size and the labels of many images, in several processes, into a `ScanTable`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
from rich.progress import track

from data.errors import DataError
from data.formats.image import read_size
from data.formats.labels import (
    NOTICE_KINDS,
    UNLABELED,
    Labels,
    PixelObjects,
    class_ids_by_name,
    labels_from_pixels,
    read_labels,
)
from data.formats.voc import read_voc
from data.indexing.listing import find_label_file
from data.indexing.scan_table import MAX_NOTICES, Reject, ScanTable, concatenate, offsets_of

CHUNK_IMAGES = 500
MIN_PARALLEL_IMAGES = 4 * CHUNK_IMAGES  # for fewer, starting processes takes longer than it saves


class ScanTask(NamedTuple):
    """One image to scan."""

    path: str
    stamps: np.ndarray
    """int64 (4,), as in `ScanTable.stamps`."""
    objects: PixelObjects | None
    """Labels from a COCO file; None if the image has a label file of its own."""


class LabelRules(NamedTuple):
    """What data.yaml says about the rows of label files."""

    names: tuple[str, ...]
    """Class names."""
    num_keypoint_values: int = 0
    """Numbers behind each box in a pose data set; 0 otherwise."""


def scan_images(tasks: Sequence[ScanTask], rules: LabelRules, workers: int, what: str) -> ScanTable:
    """Scan images in up to ``workers`` processes, a few in this one.

    A terminal shows a progress bar with the text ``what`` while many are scanned.

    Returns:
        One row per task, in order; a wrong image or label file makes a rejected row.
    """
    chunks = [tasks[start : start + CHUNK_IMAGES] for start in range(0, len(tasks), CHUNK_IMAGES)]
    is_long = len(tasks) >= MIN_PARALLEL_IMAGES
    scan = partial(scan_chunk, rules=rules)
    with ExitStack() as stack:
        results: Iterator[ScanTable] = map(scan, chunks)
        if workers > 1 and is_long:
            results = stack.enter_context(ProcessPoolExecutor(min(workers, len(chunks)))).map(scan, chunks)
        return concatenate(list(track(results, what, len(chunks), transient=True, disable=not is_long)))


def scan_chunk(tasks: Sequence[ScanTask], rules: LabelRules) -> ScanTable:
    """Scan a few images in this process; returns one row per image."""
    sizes, labels, rejects = [], [], {}
    for row, task in enumerate(tasks):
        size_hw, found = (0, 0), _no_labels()
        try:
            if task.stamps[0] < 0:
                raise DataError(f"{task.path}: missing, or not a file. Restore or remove it.")
            size_hw = read_size(task.path)
        except DataError as error:
            rejects[row] = Reject(is_label=False, message=str(error))
        else:
            try:
                found = _scan_labels(task, size_hw, rules)
            except DataError as error:
                rejects[row] = Reject(is_label=True, message=str(error))
        sizes.append(size_hw)
        labels.append(found)
    encoded = [os.fsencode(task.path) for task in tasks]
    return ScanTable(
        path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        path_offsets=offsets_of([len(path) for path in encoded]),
        boxes_xyxy_rel=np.concatenate([found.boxes_xyxy_rel for found in labels]),
        classes=np.concatenate([found.classes for found in labels]),
        box_offsets=offsets_of([len(found.classes) for found in labels]),
        sizes_hw=np.array(sizes, np.int32),
        stamps=np.stack([task.stamps for task in tasks]),
        notices=np.array([_counts_of(found) for found in labels], np.uint16),
        rejects=rejects,
    )


def _scan_labels(task: ScanTask, size_hw: tuple[int, int], rules: LabelRules) -> Labels:
    if task.objects is not None:
        return labels_from_pixels(task.objects, size_hw)
    file = find_label_file(task.path)
    if file is None:
        return _no_labels(Counter({UNLABELED: 1}))
    if file.endswith(".xml"):
        return labels_from_pixels(read_voc(file, class_ids_by_name(rules.names)), size_hw)
    return read_labels(file, len(rules.names), rules.num_keypoint_values)


def _counts_of(labels: Labels) -> list[int]:
    return [min(labels.notices[kind], MAX_NOTICES) for kind in NOTICE_KINDS]


def _no_labels(notices: Counter[str] | None = None) -> Labels:
    return Labels(np.empty((0, 4), np.float32), np.empty(0, np.int32), notices or Counter())
