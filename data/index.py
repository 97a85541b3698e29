"""All images and boxes of one split, in a handful of packed arrays.

A million small Python objects cost gigabytes, and every worker process that looks at one of them copies the
page it lies on (the reference count is a write). Here image ``i`` owns
``path_offsets[i]:path_offsets[i + 1]`` of one long byte string and ``box_offsets[i]:box_offsets[i + 1]`` of
one long table: five arrays, whatever the number of images.

Shapes: I images, N boxes of all images together.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset_yaml import DatasetYaml
from data.errors import DataError
from data.labels import read_labels

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The images of one split and their boxes.

    Memory: about 20 bytes a box, and 16 bytes and the path an image.
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


def build_index(dataset: DatasetYaml, split: str) -> ImageIndex:
    """List the images of a split, in a fixed order, and read all their labels.

    What was repaired in the labels is logged as one counted warning.

    Args:
        dataset: The data set.
        split: ``train``, ``val`` or ``test``.

    Returns:
        The images in the order of the sources, by path within a folder.

    Raises:
        DataError: If the split has no images or no label files, or a label is malformed.
    """
    paths = [path for source in dataset.sources(split) for path in _list_images(source, dataset.root)]
    boxes, classes, counts = [], [], []
    notices: Counter[str] = Counter()
    for path in paths:
        label_file = find_label_file(path)
        if label_file is None:
            notices["images without a label file"] += 1
            counts.append(0)
            continue
        labels = read_labels(label_file, dataset.num_classes)
        notices += labels.notices
        boxes.append(labels.boxes_xyxy_rel)
        classes.append(labels.classes)
        counts.append(len(labels.classes))
    if not boxes:
        expected = _label_candidates(paths[0])[0]
        raise DataError(f"{dataset.file}: no {split} image has a label file: {paths[0]} needs {expected}")
    if notices:
        logger.warning("%s: %s", split, ", ".join(f"{count} {kind}" for kind, count in notices.items()))
    encoded = [os.fsencode(path) for path in paths]
    return ImageIndex(
        path_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        path_offsets=_offsets([len(path) for path in encoded]),
        boxes_xyxy_rel=np.concatenate(boxes),
        classes=np.concatenate(classes),
        box_offsets=_offsets(counts),
    )


def find_label_file(image: Path) -> Path | None:
    """The image's label file: in the ``labels`` folder that mirrors ``images``, or beside the image."""
    return next((file for file in _label_candidates(image) if file.is_file()), None)


def _label_candidates(image: Path) -> list[Path]:
    beside = image.with_suffix(".txt")
    if "images" not in beside.parts:
        return [beside]
    after = beside.parts[::-1].index("images")  # counted from the end, so the last such folder is replaced
    return [Path(*beside.parts[: -after - 1], "labels", *beside.parts[-after:]), beside]


def _list_images(source: Path, root: Path) -> list[Path]:
    images = list(_walk(source) if source.is_dir() else _read_list(source, root))
    if not images:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{source}: holds no image: expected files ending in {suffixes}")
    return images


def _walk(folder: Path) -> Iterator[Path]:
    """Images at any depth, sorted; without hidden files (macOS leaves ``._x.jpg``) and linked folders."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _read_list(file: Path, root: Path) -> Iterator[Path]:
    """Images named in a list file, relative to the file or to the data set's root."""
    if file.suffix.lower() != ".txt":
        raise DataError(f"{file}: expected a folder of images or a list of images ending in .txt")
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if entry := line.strip():
            image = next((path for path in (file.parent / entry, root / entry) if path.is_file()), None)
            if image is None:
                raise DataError(f"{file}:{number}: no image {entry!r}: correct or remove the line")
            yield image


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
