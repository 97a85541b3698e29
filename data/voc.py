"""Parses Pascal VOC annotations: one XML file per image, boxes in pixels, classes by name.

.. code-block:: xml

    <annotation>
      <size><width>640</width><height>480</height></size>
      <object>
        <name>resistor</name>
        <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>
      </object>
    </annotation>

Coordinates are taken as pixel edges. A rotated ``robndbox`` (cx, cy, w, h, angle in radians), as some tools write
it, is reduced to the box round it. A document type declaration is refused: entities can expand to gigabytes or
read other files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data.errors import DataError
from data.labels import REDUCED, PixelObjects, Row


def read_voc(file: Path | str, class_ids: Mapping[str, int]) -> PixelObjects:
    """Read the annotations of one image.

    Args:
        file: A Pascal VOC ``.xml`` file; may hold no object.
        class_ids: Class id by name.

    Returns:
        The objects in the file's order.

    Raises:
        DataError: If the file cannot be read, is no such file, or an object has no known class or no box.
    """
    try:
        root = fromstring(Path(file).read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): restore or remove it") from None
    except DefusedXmlException:
        raise DataError(f"{file}: declares a document type, which is not safe to expand: remove the DOCTYPE") from None
    except (ParseError, ValueError, LookupError) as error:  # the latter two for encodings
        raise DataError(f"{file}: is not valid XML ({error}): restore or remove it") from None
    if root.tag.lower() != "annotation":
        raise DataError(f"{file}: begins with <{root.tag}>, expected <annotation>: give a Pascal VOC file or remove it")
    notices: Counter[str] = Counter()
    rows = [
        _read_object(item, f"{file}: object {number}", class_ids, notices)
        for number, item in enumerate(root.iter("object"), start=1)
    ]
    return PixelObjects(str(file), _read_size(root, str(file)), rows, notices)


def _read_size(root: Element, where: str) -> tuple[int, int] | None:
    """Height and width; None where they are missing or zero, as some tools write them."""
    if root.find("size") is None:
        return None
    height, width = (_number(root, f"size/{key}", where) for key in ("height", "width"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _read_object(item: Element, where: str, class_ids: Mapping[str, int], notices: Counter[str]) -> Row:
    name = (item.findtext("name") or "").strip()
    if name not in class_ids:
        raise DataError(f"{where}: class {name!r} is not among the names of data.yaml: correct it or add the name")
    if item.find("bndbox") is None and item.find("robndbox") is not None:
        notices[REDUCED] += 1
        keys = ("cx", "cy", "w", "h", "angle")
        cx, cy, width, height, angle = (_number(item, f"robndbox/{key}", where) for key in keys)
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        half_x, half_y = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
        return class_ids[name], cx - half_x, cy - half_y, cx + half_x, cy + half_y
    x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}: size {x2 - x1:g} x {y2 - y1:g} is negative: correct or remove it")
    return class_ids[name], x1, y1, x2, y2


def _number(item: Element, key: str, where: str) -> float:
    text = item.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {key} is {(text or '')[:40]!r}, not a finite number: correct or remove it")
    return value
