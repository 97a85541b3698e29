"""Parses YOLO label files: one object per line, ``class cx cy width height`` in fractions of the image.

A line with more columns is a polygon, ``class x1 y1 x2 y2 x3 y3 ...``, and is reduced to its bounding box.

What is put right, and counted: boxes that reach beyond the image are clipped, boxes without area and repeated
lines are dropped. Everything else that is wrong is refused: a silent repair would train on wrong labels.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import DataError

RANGE_TOLERANCE = 0.01  # as in Ultralytics: annotation tools overshoot the image's edge by rounding
CLIP_NOTICE = 1e-3  # reaching less than this beyond the edge is rounding, not worth a warning
MIN_POLYGON_COLUMNS = 7  # a class and three points

Row = tuple[int, float, float, float, float]  # class, then x1, y1, x2, y2


class Labels(NamedTuple):
    """The objects of one image."""

    boxes_xyxy_rel: np.ndarray
    """float32 (n, 4), corner boxes in fractions of the image's width and height, inside [0, 1]."""
    classes: np.ndarray
    """int32 (n,)."""
    notices: Counter[str]
    """How many objects were put right, by kind."""


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
    notices: Counter[str] = Counter()
    rows: dict[Row, None] = {}  # keeps the order and drops repetitions
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row = _clip(_parse_row(line, f"{file}:{number}", num_classes), notices)
        if row[3] <= row[1] or row[4] <= row[2]:
            notices["boxes without area dropped"] += 1
        elif row in rows:
            notices["repeated lines dropped"] += 1
        else:
            rows[row] = None
    table = np.array(list(rows), np.float64).reshape(-1, 5)
    return Labels(table[:, 1:].astype(np.float32), table[:, 0].astype(np.int32), notices)


def _parse_row(line: str, where: str, num_classes: int) -> Row:
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


def _clip(row: Row, notices: Counter[str]) -> Row:
    class_id, *corners = row
    clipped = [min(max(value, 0.0), 1.0) for value in corners]
    if max(abs(new - old) for new, old in zip(clipped, corners, strict=True)) > CLIP_NOTICE:
        notices["boxes clipped to the image"] += 1
    return class_id, *clipped
