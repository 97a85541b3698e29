"""Parses YOLO label files: one object per line, ``class cx cy width height`` in fractions of the image.

A line with more columns is a polygon or a rotated box, ``class x1 y1 x2 y2 x3 y3 ...``, and is reduced to its bounding
box; or it is a pose row, ``class cx cy width height`` and key points, which are left out. ``kpt_shape`` in data.yaml
tells the two apart. Without it, a row is a pose row if every third number behind the box is a visibility (0, 1 or 2)
and the first four numbers are a box inside the image.

Polygons are reduced, boxes that reach over the edge are clipped, boxes without area and repeated lines are dropped;
all of these are counted. Every other error is refused: a silent repair would train on wrong labels. `ObjectList` holds
these rules for every format.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.formats.text import read_text

RANGE_TOLERANCE = 0.01  # as in Ultralytics: annotation tools exceed the edge by rounding
SHAPE_TOLERANCE = 0.02  # of the aspect ratio: resizing rounds
CLIP_NOTICE = 1e-3  # less than this beyond the edge is rounding
BOX_COLUMNS = 5  # class cx cy width height
MIN_POLYGON_COLUMNS = 7  # a class and three points
NOTICE_KINDS = (  # in the order of the warning
    "polygons and rotated boxes reduced to boxes",
    "of them may be boxes with key points (if so, give kpt_shape in data.yaml)",
    "boxes whose key points are left out",
    "boxes clipped to the image",
    "boxes without area dropped",
    "repeated objects dropped",
    "crowd regions dropped",
    "images without a label file",
)
REDUCED, MAYBE_POSE, POSE, CLIPPED, WITHOUT_AREA, REPEATED, CROWD, UNLABELED = NOTICE_KINDS

Row = tuple[int, float, float, float, float]  # class, then x1, y1, x2, y2


class Labels(NamedTuple):
    """The objects of one image."""

    boxes_xyxy_rel: np.ndarray
    """float32 (n, 4), corner boxes in fractions of the image's width and height, inside [0, 1]."""
    classes: np.ndarray
    """int32 (n,)."""
    notices: Counter[str]
    """Number of objects that were put right, by `NOTICE_KINDS`."""


class PixelObjects(NamedTuple):
    """The objects of one image in pixels, as COCO and Pascal VOC give them."""

    where: str
    """File and image, for messages."""
    size_hw: tuple[int, int] | None
    """Height and width of the annotated image in pixels; None if the file does not say."""
    rows: list[Row]
    """Class and finite corners in pixels."""
    notices: Counter[str]
    """Number of objects that were left out or reduced already."""


def read_labels(file: Path | str, num_classes: int, num_keypoint_values: int = 0) -> Labels:
    """Read the YOLO label file of one image, which may be empty; boxes stay in the file's order.

    Args:
        file: A ``.txt`` file.
        num_classes: Class ids must be below this.
        num_keypoint_values: Numbers behind each box in a pose data set; 0 otherwise.

    Raises:
        DataError: If the file cannot be read or a line is malformed; names the file and the line.
    """
    try:
        text = read_text(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Restore or remove it.") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not text. Write lines of 'class cx cy width height'.") from None
    objects = ObjectList()
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            objects.add(*_parse_row(line, f"{file}:{number}", num_classes, num_keypoint_values, objects.notices))
    return objects.labels()


@functools.lru_cache(maxsize=8)
def class_ids_by_name(names: tuple[str, ...]) -> dict[str, int]:
    """Class id by name, for formats that name the classes; `data.formats.dataset_yaml` refuses repeated names."""
    return {name: class_id for class_id, name in enumerate(names)}


class ObjectList:
    """Collects the objects of one image; clips, drops and counts them."""

    def __init__(self) -> None:
        self.notices: Counter[str] = Counter()
        self._rows: dict[Row, None] = {}  # keeps the order and drops repetitions

    def add(self, class_id: int, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add an object: its class, and finite corners in fractions of the image."""
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
        """The objects that were kept."""
        table = np.array(list(self._rows), np.float64).reshape(-1, 5)
        return Labels(table[:, 1:].astype(np.float32), table[:, 0].astype(np.int32), self.notices)


def labels_from_pixels(objects: PixelObjects, size_hw: tuple[int, int]) -> Labels:
    """Convert objects from pixels to fractions of an image of ``size_hw`` pixels, under the rules of `ObjectList`.

    The image may have been resized since it was annotated, but not turned or cropped.

    Raises:
        DataError: If the image has another shape than the annotated one, or a box lies outside it.
    """
    height, width = objects.size_hw or size_hw
    if abs(height * size_hw[1] - width * size_hw[0]) > SHAPE_TOLERANCE * height * size_hw[1]:
        raise DataError(
            f"{objects.where}: annotated at {width} x {height} pixels, but the image has {size_hw[1]} x "
            f"{size_hw[0]}. Turn the image back or annotate it again."
        )
    collected = ObjectList()
    collected.notices.update(objects.notices)
    for class_id, x1, y1, x2, y2 in objects.rows:
        corners = (x1 / width, y1 / height, x2 / width, y2 / height)
        if min(corners) < -RANGE_TOLERANCE or max(corners) > 1 + RANGE_TOLERANCE:
            raise DataError(
                f"{objects.where}: box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) lies outside the image of {width} x {height} "
                "pixels. Correct or remove it."
            )
        collected.add(class_id, *corners)
    return collected.labels()


def _parse_row(line: str, where: str, num_classes: int, num_keypoint_values: int, notices: Counter[str]) -> Row:
    columns = line.split()
    _check_columns(columns, where, num_keypoint_values)
    values = [_parse_number(column, where) for column in columns]
    class_id, numbers = _check_class(values[0], where, num_classes), values[1:]
    is_longer = len(columns) > BOX_COLUMNS
    if is_longer and (num_keypoint_values or _has_visibilities(numbers)):
        notices[POSE] += 1
        return class_id, *_corners_of_box(numbers[:4], where)
    if is_longer and len(numbers) % 2:
        raise DataError(_wrong_columns(columns, where, num_keypoint_values))
    if is_longer:
        notices[REDUCED] += 1
        notices[MAYBE_POSE] += _may_be_pose(numbers)
        xs, ys = _check_range(numbers[0::2], where), _check_range(numbers[1::2], where)
        return class_id, min(xs), min(ys), max(xs), max(ys)
    return class_id, *_corners_of_box(numbers, where)


def _check_columns(columns: list[str], where: str, num_keypoint_values: int) -> None:
    """Refuse a line whose number of columns is wrong."""
    if len(columns) < BOX_COLUMNS and any(mark in column for column in columns for mark in ",;"):
        raise DataError(f"{where}: {' '.join(columns)[:60]!r}: not 5 numbers with spaces between. Replace the commas.")
    if num_keypoint_values:
        is_known = len(columns) in (BOX_COLUMNS, BOX_COLUMNS + num_keypoint_values)
    else:
        is_known = len(columns) == BOX_COLUMNS or len(columns) >= MIN_POLYGON_COLUMNS
    if not is_known:
        raise DataError(_wrong_columns(columns, where, num_keypoint_values))


def _wrong_columns(columns: list[str], where: str, num_keypoint_values: int) -> str:
    expected = "expected 5 (class cx cy width height)"
    if num_keypoint_values:
        num_expected = BOX_COLUMNS + num_keypoint_values
        rule = f"{expected} or, by kpt_shape in data.yaml, {num_expected}. Correct the line or kpt_shape."
    elif len(columns) == BOX_COLUMNS + 1:
        rule = f"{expected}. Remove the confidence or angle at the end of the line."
    else:
        rule = f"{expected} or a polygon (class and at least 3 points). Correct or remove the line."
    return f"{where}: {len(columns)} columns, {rule}"


def _corners_of_box(numbers: list[float], where: str) -> tuple[float, float, float, float]:
    cx, cy, width, height = _check_range(numbers, where)
    if width < 0 or height < 0:
        raise DataError(f"{where}: size {width:g} x {height:g} is negative. Correct or remove the line.")
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _check_range(values: list[float], where: str) -> list[float]:
    for value in values:
        if not -RANGE_TOLERANCE <= value <= 1 + RANGE_TOLERANCE:
            raise DataError(
                f"{where}: coordinate {value:g} is not between 0 and 1. Give fractions of the image's width "
                f"and height (pixels divided by the size)."
            )
    return values


def _has_visibilities(numbers: list[float]) -> bool:
    """Whether numbers are a box inside the image and at least two key points with a visibility of 0, 1 or 2."""
    points = numbers[4:]
    is_visibility = len(points) >= 6 and len(points) % 3 == 0 and all(value in (0, 1, 2) for value in points[2::3])
    return is_visibility and _is_box_inside(numbers[:4])


def _may_be_pose(numbers: list[float]) -> bool:
    """Whether numbers could be a box and key points without visibilities inside it."""
    cx, cy, width, height = numbers[:4]
    is_within = all(abs(x - cx) <= width / 2 for x in numbers[4::2]) and all(
        abs(y - cy) <= height / 2 for y in numbers[5::2]
    )
    return is_within and _is_box_inside(numbers[:4])


def _is_box_inside(numbers: list[float]) -> bool:
    cx, cy, width, height = numbers
    gaps = (cx - width / 2, cy - height / 2, 1 - cx - width / 2, 1 - cy - height / 2)
    return min(width, height) > 0 and min(gaps) >= -RANGE_TOLERANCE


def _parse_number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {text[:40]!r} is not a finite number. Correct or remove the line.")
    return value


def _check_class(value: float, where: str, num_classes: int) -> int:
    if not value.is_integer() or not 0 <= value < num_classes:
        can_be_named = value.is_integer() and value >= 0
        raise DataError(
            f"{where}: class {value:g}, but data.yaml names {num_classes} classes (ids 0 to "
            f"{num_classes - 1}). Correct the line{' or add the name' if can_be_named else ''}."
        )
    return int(value)


def _clip(value: float) -> float:
    """Clip to the image in float32 precision, so that a box has area exactly if its stored row has."""
    return float(np.float32(min(max(value, 0.0), 1.0)))
