"""Parses YOLO label files: one object per line, ``class cx cy width height`` in fractions of the image.

A line with more columns is a polygon or a rotated box, ``class x1 y1 x2 y2 x3 y3 ...``, and is reduced to its
bounding box.

What is put right, and counted: polygons are reduced, boxes that reach beyond the image are clipped, boxes
without area and repeated lines are dropped. Everything else that is wrong is refused: a silent repair would
train on wrong labels. `ObjectList` holds these rules for every format.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import DataError

RANGE_TOLERANCE = 0.01  # as in Ultralytics: annotation tools overshoot the image's edge by rounding
SHAPE_TOLERANCE = 0.02  # of the aspect ratio: resizing rounds
CLIP_NOTICE = 1e-3  # reaching less than this beyond the edge is rounding, not worth a warning
MIN_POLYGON_COLUMNS = 7  # a class and three points
NOTICE_KINDS = (  # what is put right or left out, in the order in which it is told
    "polygons and rotated boxes reduced to boxes",
    "boxes clipped to the image",
    "boxes without area dropped",
    "repeated objects dropped",
    "crowd regions dropped",
    "images without a label file",
)
REDUCED, CLIPPED, WITHOUT_AREA, REPEATED, CROWD, UNLABELLED = NOTICE_KINDS

Row = tuple[int, float, float, float, float]  # class, then x1, y1, x2, y2


class Labels(NamedTuple):
    """The objects of one image."""

    boxes_xyxy_rel: np.ndarray
    """float32 (n, 4), corner boxes in fractions of the image's width and height, inside [0, 1]."""
    classes: np.ndarray
    """int32 (n,)."""
    notices: Counter[str]
    """How many objects were put right, by `NOTICE_KINDS`."""


class PixelObjects(NamedTuple):
    """The objects of one image as COCO and Pascal VOC give them: in pixels."""

    where: str
    """What an error names: the file, and the image in it."""
    size_hw: tuple[int, int] | None
    """Height and width of the annotated image, if the file says."""
    rows: list[Row]
    """Class and corners in pixels, finite."""
    notices: Counter[str]
    """How many objects were left out or reduced already."""


def read_labels(file: Path | str, num_classes: int) -> Labels:
    """Read the label file of one image.

    Args:
        file: A YOLO ``.txt`` file; may be empty.
        num_classes: Class ids must be below this.

    Returns:
        Boxes in the file's order.

    Raises:
        DataError: If the file cannot be read or a line is malformed; names the file and the line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): restore or remove it") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: is not text: expected lines of 'class cx cy width height'") from None
    objects = ObjectList()
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            objects.add(*_parse_row(line, f"{file}:{number}", num_classes, objects.notices))
    return objects.labels()


class ObjectList:
    """Collects the objects of one image; clips, drops and counts."""

    def __init__(self) -> None:
        self.notices: Counter[str] = Counter()
        self._rows: dict[Row, None] = {}  # keeps the order and drops repetitions

    def add(self, class_id: int, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add one object: its class, and finite corners in fractions of the image."""
        row = (class_id, _clip(x1), _clip(y1), _clip(x2), _clip(y2))
        if row[3] <= row[1] or row[4] <= row[2]:
            self.notices[WITHOUT_AREA] += 1
        elif row in self._rows:
            self.notices[REPEATED] += 1
        else:
            self._rows[row] = None
            if max(-x1, -y1, x2 - 1, y2 - 1) > CLIP_NOTICE:
                self.notices[CLIPPED] += 1

    def labels(self) -> Labels:
        """What is left of them."""
        table = np.array(list(self._rows), np.float64).reshape(-1, 5)
        return Labels(table[:, 1:].astype(np.float32), table[:, 0].astype(np.int32), self.notices)


def labels_from_pixels(objects: PixelObjects, size_hw: tuple[int, int]) -> Labels:
    """Bring objects from pixels to fractions of the image, under the rules of `ObjectList`.

    An image that has been resized since it was annotated is as good as before; one that has been turned or
    cropped is not.

    Args:
        objects: What the annotation file says.
        size_hw: Upright height and width of the image file.

    Raises:
        DataError: If the image has another shape than the annotated one, or a box lies outside it.
    """
    height, width = objects.size_hw or size_hw
    if abs(height * size_hw[1] - width * size_hw[0]) > SHAPE_TOLERANCE * height * size_hw[1]:
        raise DataError(
            f"{objects.where}: annotated at {width} x {height} pixels, but the image has {size_hw[1]} x "
            f"{size_hw[0]}: turn the image back or annotate it again"
        )
    collected = ObjectList()
    collected.notices.update(objects.notices)
    for class_id, x1, y1, x2, y2 in objects.rows:
        corners = (x1 / width, y1 / height, x2 / width, y2 / height)
        if min(corners) < -RANGE_TOLERANCE or max(corners) > 1 + RANGE_TOLERANCE:
            raise DataError(
                f"{objects.where}: box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies outside the image of {width} x {height} "
                "pixels: correct or remove it"
            )
        collected.add(class_id, *corners)
    return collected.labels()


def _parse_row(line: str, where: str, num_classes: int, notices: Counter[str]) -> Row:
    columns = line.split()
    is_polygon = len(columns) >= MIN_POLYGON_COLUMNS and len(columns) % 2 == 1
    if len(columns) != 5 and not is_polygon:
        raise DataError(
            f"{where}: {len(columns)} columns, expected 5 (class cx cy width height) or a polygon (class and "
            f"at least 3 points): correct or remove the line"
        )
    values = [_parse_number(column, where) for column in columns]
    class_id, coordinates = _check_class(values[0], where, num_classes), values[1:]
    for value in coordinates:
        if not -RANGE_TOLERANCE <= value <= 1 + RANGE_TOLERANCE:
            raise DataError(
                f"{where}: coordinate {value:g} is not between 0 and 1: give fractions of the image's width "
                f"and height (pixels divided by the size)"
            )
    if is_polygon:
        notices[REDUCED] += 1
        xs, ys = coordinates[0::2], coordinates[1::2]
        return class_id, min(xs), min(ys), max(xs), max(ys)
    cx, cy, width, height = coordinates
    if width < 0 or height < 0:
        raise DataError(f"{where}: size {width:g} x {height:g} is negative: correct or remove the line")
    return class_id, cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _parse_number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {text[:40]!r} is not a finite number: correct or remove the line")
    return value


def _check_class(value: float, where: str, num_classes: int) -> int:
    if not value.is_integer() or not 0 <= value < num_classes:
        raise DataError(
            f"{where}: class {value:g}, but data.yaml names {num_classes} classes (ids 0 to "
            f"{num_classes - 1}): correct the line or add the name"
        )
    return int(value)


def _clip(value: float) -> float:
    """Inside the image, and as precise as it is kept: a box without area is one that has none there."""
    return float(np.float32(min(max(value, 0.0), 1.0)))
