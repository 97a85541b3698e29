"""Facts about a data set: counts, sizes, bad files, repeated images. Prints nothing.

Sizes of objects are in pixels at the training size, after the long side of the image has been resized. The size of a
box is the square root of its area.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from data.errors import DataError
from data.formats.dataset_yaml import DatasetYaml
from data.indexing.index import ImageIndex, check_objects, check_split, index_of, scan_split
from data.indexing.scan_table import ScanTable, notice_counts

TRAINING_SPLITS = ("train", "val")
SIZE_EDGES_PX = (8, 16, 32, 96)  # two strides of the network; COCO's small and medium
SIZE_NAMES = ("below 8 px", "8 to 16 px", "16 to 32 px", "32 to 96 px", "96 px and more")
ROBOFLOW_NAME = re.compile(r"(.+)\.rf\.\w+\.\w+$")  # Roboflow adds .rf.<hash> to each copy of a picture
MANY_FILES = 2000  # reading as many takes long enough for a progress bar


@dataclass(frozen=True)
class SplitFacts:
    """Facts about one split; object counts are of the usable images."""

    num_images: int
    num_boxes: int
    num_background: int
    """Images without objects."""
    max_boxes_per_image: int
    left_out: list[str]
    """Unusable images, a line each."""
    refused: list[str]
    """Wrong label files, a line each."""
    notes: tuple[str, ...]
    """Sources that were found elsewhere than data.yaml says, a line each."""
    notices: dict[str, int]
    """Number of objects that were put right, by kind."""
    boxes_per_class: list[int]
    images_per_class: list[int]
    boxes_per_size: dict[str, int]
    """Boxes by their size at the training size."""
    image_sizes: dict[str, int]
    """The most frequent sizes of images, width x height."""


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about a whole data set."""

    file: str
    """Path of the data.yaml."""
    names: tuple[str, ...]
    image_size: int
    splits: dict[str, SplitFacts]
    duplicates: dict[str, list[list[str]]]
    """Per split: groups of files with the same content."""
    leaks: list[list[str]]
    """Groups of files with the same content in different splits."""
    missing: dict[str, str]
    """Error line of each split that data.yaml names and that does not exist."""
    related: list[list[str]]
    """Groups of copies that Roboflow made of one picture, in different splits."""
    refusals: dict[str, str]
    """Error line of each split that commands refuse. Training uses ``train`` and ``val``."""


def inspect_dataset(
    dataset: DatasetYaml, image_size: int, cache_folder: Path | None = None, workers: int = 1
) -> tuple[DatasetFacts, dict[str, ImageIndex]]:
    """Look at every image and label of a data set; ``image_size`` is the training size in pixels.

    Returns:
        The facts, and the usable images of each split.

    Raises:
        DataError: If ``train`` or ``val`` cannot be listed. Bad files are among the facts.
    """
    tables, refusals = {}, {}
    for split in dict.fromkeys((*TRAINING_SPLITS, *dataset.splits)):
        try:
            if split in dataset.splits:
                tables[split] = scan_split(dataset, split, cache_folder, workers)
            _check(dataset, split, tables)
        except DataError as error:
            if split in TRAINING_SPLITS and split in dataset.splits and split not in tables:
                raise
            refusals[split] = str(error)
    indices = {split: index_of(table) for split, table in tables.items()}
    names = dataset.names
    splits = {split: _split_facts(dataset, split, tables[split], indices[split], image_size) for split in tables}
    groups = _same_content(tables)
    files = [(split, table.path(row)) for split, table in tables.items() for row in range(len(table))]
    return DatasetFacts(
        file=str(dataset.file),
        names=names,
        image_size=image_size,
        splits=splits,
        duplicates={split: _within(split, groups) for split in tables},
        missing=dataset.missing,
        leaks=[[path for _, path in group] for group in groups if _num_splits(group) > 1],
        related=_related_across_splits(files, groups),
        refusals=refusals,
    ), indices


def _check(dataset: DatasetYaml, split: str, tables: dict[str, ScanTable]) -> None:
    """Refuse a split as the commands that use it do."""
    dataset.sources(split)
    check_split(dataset, split, tables[split])
    if split == "train":
        check_objects(dataset, index_of(tables[split]))


def box_sizes_px(index: ImageIndex, image_size: int) -> np.ndarray:
    """Width and height of every box in pixels at the training size, float64 (N, 2)."""
    sizes_wh = index.sizes_hw[:, ::-1].astype(np.float64)
    resized_wh = sizes_wh * (image_size / np.maximum(sizes_wh.max(axis=1, keepdims=True), 1))
    per_box = np.repeat(resized_wh, np.diff(index.box_offsets), axis=0)
    return (index.boxes_xyxy_rel[:, 2:] - index.boxes_xyxy_rel[:, :2]) * per_box


def _split_facts(
    dataset: DatasetYaml, split: str, table: ScanTable, index: ImageIndex, image_size: int
) -> SplitFacts:
    num_classes = dataset.num_classes
    counts = np.diff(index.box_offsets)
    bins = np.digitize(np.sqrt(box_sizes_px(index, image_size).prod(axis=1)), SIZE_EDGES_PX)
    sizes, frequencies = np.unique(index.sizes_hw, axis=0, return_counts=True)
    frequent = np.argsort(-frequencies, kind="stable")[:5]
    return SplitFacts(
        num_images=len(index),
        num_boxes=len(index.classes),
        num_background=int((counts == 0).sum()),
        max_boxes_per_image=int(counts.max(initial=0)),
        left_out=[reject.message for reject in table.rejects.values() if not reject.is_label],
        refused=[reject.message for reject in table.rejects.values() if reject.is_label],
        notes=dataset.notes.get(split, ()),
        notices=notice_counts(table),
        boxes_per_class=np.bincount(index.classes, minlength=num_classes).tolist(),
        images_per_class=index.images_per_class(num_classes).tolist(),
        boxes_per_size=dict(zip(SIZE_NAMES, np.bincount(bins, minlength=len(SIZE_NAMES)).tolist(), strict=True)),
        image_sizes={f"{sizes[i][1]} x {sizes[i][0]}": int(frequencies[i]) for i in frequent},
    )


def _same_content(tables: dict[str, ScanTable]) -> list[list[tuple[str, str]]]:
    """Groups of (split, file) with the same bytes; only files of equal length are read."""
    lengths = np.concatenate([table.stamps[:, 0] for table in tables.values()])
    values, counts = np.unique(lengths, return_counts=True)
    shared = values[(counts > 1) & (values > 0)]
    suspects = [
        (split, table.path(int(row)))
        for split, table in tables.items()
        for row in np.flatnonzero(np.isin(table.stamps[:, 0], shared))
    ]
    by_digest: defaultdict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for split, path in track(suspects, "comparing images", transient=True, disable=len(suspects) < MANY_FILES):
        if (digest := _digest(path)) is not None:
            by_digest[digest].append((split, path))
    return [group for group in by_digest.values() if len(group) > 1]


def _digest(path: str) -> bytes | None:
    """Digest of a file's content; None if it cannot be read, which the scan reports."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _num_splits(group: Iterable[tuple[str, str]]) -> int:
    return len({split for split, _ in group})


def _within(split: str, groups: list[list[tuple[str, str]]]) -> list[list[str]]:
    found = [[path for other, path in group if other == split] for group in groups]
    return [paths for paths in found if len(paths) > 1]


def _related_across_splits(files: list[tuple[str, str]], same: list[list[tuple[str, str]]]) -> list[list[str]]:
    """Groups of files in different splits that Roboflow names as copies of one picture; without equal files."""
    equal = {path for group in same for _, path in group}
    by_name: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, path in files:
        if (match := ROBOFLOW_NAME.match(Path(path).name)) and path not in equal:
            by_name[match[1]].append((split, path))
    return [[path for _, path in group] for group in by_name.values() if _num_splits(group) > 1]


def imbalance(facts: SplitFacts) -> float:
    """Objects of the most frequent class divided by those of the rarest class that has any; 1 without objects."""
    present = [count for count in facts.boxes_per_class if count]
    return max(present) / min(present) if present else 1.0
