"""Parses Pascal VOC annotations: one XML file per image, boxes in pixels, classes by name.

.. code-block:: xml

    <annotation>
      <size><width>640</width><height>480</height></size>
      <object>
        <name>resistor</name>
        <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>
      </object>
    </annotation>

Coordinates are pixel edges. A rotated ``robndbox`` (cx, cy, w, h, angle in radians) or a ``polygon`` is reduced to the
box around it. Objects that are marked difficult are used, boxes of an object's parts are not. Tags count in any case
and namespace. A document type declaration is refused: entities can expand to gigabytes or read other files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data.errors import DataError
from data.formats.labels import REDUCED, PixelObjects, Row
from data.formats.text import marked_encoding

DECLARED_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
POLYGON_COORDINATE = re.compile(r"[xy]\d*")


def read_voc(file: Path | str, class_ids: Mapping[str, int]) -> PixelObjects:
    """Read the annotations of one image from a ``.xml`` file, in the file's order; ``class_ids`` are by name.

    Raises:
        DataError: If the file cannot be read, is no such file, or an object has no known class or no box.
    """
    try:
        root = fromstring(_decode(Path(file).read_bytes()), forbid_dtd=True)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Restore or remove it.") from None
    except DefusedXmlException:
        raise DataError(f"{file}: it declares a document type, which is not safe. Remove the DOCTYPE.") from None
    except (ParseError, ValueError, LookupError) as error:  # the last two for encodings
        raise DataError(f"{file}: not valid XML ({error}). Restore or remove it.") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()  # without its namespace
    if root.tag != "annotation":
        raise DataError(f"{file}: begins with <{root.tag}>, not <annotation>. Give a Pascal VOC file or remove it.")
    notices: Counter[str] = Counter()
    rows = [
        _read_object(item, f"{file}: object {number}", class_ids, notices)
        for number, item in enumerate(root.iter("object"), start=1)
    ]
    return PixelObjects(str(file), _read_size(root, str(file)), rows, notices)


def _decode(content: bytes) -> str:
    """The text of an XML file: by its byte order mark, else by its declaration, else UTF-8.

    Python's parser does not know multi-byte encodings such as gb2312. Some programs declare UTF-16 and write UTF-8.
    """
    declared = DECLARED_ENCODING.match(content)
    encoding = marked_encoding(content) or (declared[1].decode() if declared else "utf-8")
    if declared and encoding.lower().startswith(("utf-16", "utf_16", "utf16", "ucs")):
        encoding = "utf-8"  # the declaration matched as single bytes, so it is not UTF-16
    return content.decode(encoding).lstrip()  # the parser refuses a declaration behind an empty line


def _read_size(root: Element, where: str) -> tuple[int, int] | None:
    """Height and width in pixels; None if they are missing, empty or zero, as some tools write them."""
    if not all((root.findtext(f"size/{key}") or "").strip() for key in ("height", "width")):
        return None
    height, width = (_number(root, f"size/{key}", where) for key in ("height", "width"))
    return (int(height), int(width)) if height >= 1 and width >= 1 else None


def _read_object(item: Element, where: str, class_ids: Mapping[str, int], notices: Counter[str]) -> Row:
    name = (item.findtext("name") or "").strip()
    if name not in class_ids:
        raise DataError(f"{where}: class {name!r} is not among the names of data.yaml. Correct it or add the name.")
    if item.find("bndbox") is not None:
        x1, y1, x2, y2 = (_number(item, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax"))
    elif item.find("robndbox") is not None:
        notices[REDUCED] += 1
        x1, y1, x2, y2 = _around_rotated_box(item, where)
    elif item.find("polygon") is not None:
        notices[REDUCED] += 1
        x1, y1, x2, y2 = _around_polygon(item, where)
    else:
        raise DataError(f"{where}: no bndbox, robndbox or polygon. Add its box or remove it.")
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}: size {x2 - x1:g} x {y2 - y1:g} is negative. Correct or remove it.")
    return class_ids[name], x1, y1, x2, y2


def _around_rotated_box(item: Element, where: str) -> tuple[float, float, float, float]:
    keys = ("cx", "cy", "w", "h", "angle")
    cx, cy, width, height, angle = (_number(item, f"robndbox/{key}", where) for key in keys)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_x, half_y = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return cx - half_x, cy - half_y, cx + half_x, cy + half_y


def _around_polygon(item: Element, where: str) -> tuple[float, float, float, float]:
    """The box around ``<polygon><x1>..</x1><y1>..</y1>..`` or ``<polygon><pt><x>..</x><y>..</y></pt>..``."""
    values: dict[str, list[float]] = {"x": [], "y": []}
    for point in item.iterfind("polygon//*"):
        if POLYGON_COORDINATE.fullmatch(point.tag):
            values[point.tag[0]].append(_parse(point.text, f"polygon/{point.tag}", where))
    xs, ys = values["x"], values["y"]
    if len(xs) < 3 or len(xs) != len(ys):
        raise DataError(f"{where}: the polygon has {len(xs)} x and {len(ys)} y, not 3 points or more. Correct it.")
    return min(xs), min(ys), max(xs), max(ys)


def _number(item: Element, key: str, where: str) -> float:
    return _parse(item.findtext(key), key, where)


def _parse(text: str | None, key: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {key}: {(text or '')[:40]!r}: not a finite number. Correct or remove it.")
    return value
