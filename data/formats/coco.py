"""Reads COCO detection files: the images and boxes of a whole split in one JSON file.

Classes are matched by name, so category ids may have gaps and differ between the files of the splits. Crowd regions
are left out. An annotation without a box is reduced to the box around its polygons. Ids, numbers and flags may be
written as text.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from data.errors import DataError
from data.formats.labels import CROWD, REDUCED, PixelObjects, class_ids_by_name
from data.formats.moved_paths import Place, find_place, is_absolute, is_file, parts_of
from data.formats.text import is_encodable

MAX_COORDINATE_PX = 1e9  # the comparison also refuses nan
NUM_TRIED = 100  # names that are tried in other notations

logger = logging.getLogger(__name__)


class CocoFile:
    """One parsed COCO file.

    Memory: about five times the file, while this object lives.
    """

    def __init__(self, file: Path, root: Path, names: tuple[str, ...]) -> None:
        """Parse the file; images lie below ``root`` or beside the file, and categories in use must be among ``names``.

        Raises:
            DataError: If the file is no COCO file, or a category, an annotation or an image is wrong.
        """
        self.file = file
        content = _load(file)
        class_ids = _class_ids(file, content, names)
        images = _by_id(file, content, "images", "file_name")
        path_of = _find_images(file, root, [image["file_name"] for image in images.values()])
        self._objects: dict[str, PixelObjects] = {}
        by_image_id: dict[object, PixelObjects] = {}
        for image_id, image in images.items():
            path = str(path_of(image["file_name"]))
            if path in self._objects:
                raise DataError(f"{file}: image {image['file_name']!r} is listed twice. Remove one of the two.")
            by_image_id[image_id] = PixelObjects(f"{file}: {image['file_name']}", _size_hw(image), [], Counter())
            self._objects[path] = by_image_id[image_id]
        for annotation in _entries(file, content, "annotations"):
            _add(file, annotation, by_image_id, class_ids)

    @property
    def paths(self) -> list[str]:
        """Paths of the image files, in the file's order."""
        return list(self._objects)

    def objects(self, path: str) -> PixelObjects:
        """The objects of one of `paths`."""
        return self._objects[path]


def read_category_names(file: Path) -> tuple[str, ...]:
    """Names of the categories in the order of their ids, for a data.yaml without ``names``.

    Raises:
        DataError: If the file is no COCO file, or its categories cannot be ordered or share a name.
    """
    categories = _by_id(file, _load(file), "categories", "name")
    if not all(identity.isdecimal() for identity in categories):
        raise DataError(f"{file}: the category ids are not all numbers. Give 'names' in data.yaml.")
    names = tuple(categories[identity]["name"] for identity in sorted(categories, key=int))
    if not names:
        raise DataError(f"{file}: categories: []: no category. Give 'names' in data.yaml.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{file}: categories: {name!r}: occurs {count} times. Give 'names' in data.yaml, each once.")
    return names


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Give a readable COCO file.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}). Give a COCO file.") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise DataError(f"{file}: not a COCO file. Give a file with the keys images, annotations and categories.")
    return content


def _entries(file: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{file}: {key} is not a list of objects. Give a COCO file.")
    return entries


def _by_id(file: Path, content: dict[str, Any], key: str, needed: str) -> dict[str, dict[str, Any]]:
    """The entries of ``key`` by their ids."""
    found: dict[str, dict[str, Any]] = {}
    for entry in _entries(file, content, key):
        identity = _identity(entry.get("id"))
        if identity is None or identity in found or not isinstance(entry.get(needed), str):
            raise DataError(
                f"{file}: {key}: id {entry.get('id')!r} is missing or repeated, or has no {needed}. Correct it."
            )
        if not is_encodable(entry[needed], "surrogateescape" if needed == "file_name" else "strict"):
            raise DataError(f"{file}: {key}: {needed}: {entry[needed]!r}: half a character. Write it in UTF-8.")
        found[identity] = entry
    return found


def _identity(value: Any) -> str | None:
    """An id as text, because tools write the same id as 12, "12" or 12.0; None if it is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_id = isinstance(value, int | str) and not isinstance(value, bool)
    return str(value).strip() if is_id else None


def _number(value: Any) -> float | None:
    """A number, also from text; None if it is no number or beyond `MAX_COORDINATE_PX`."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < MAX_COORDINATE_PX else None


def _class_ids(file: Path, content: dict[str, Any], names: tuple[str, ...]) -> dict[str, int]:
    """Class id by category id; a category without annotations may have any name."""
    used = {_identity(annotation.get("category_id")) for annotation in _entries(file, content, "annotations")}
    positions = class_ids_by_name(names)
    class_ids = {}
    for identity, category in _by_id(file, content, "categories", "name").items():
        name = category["name"]
        if name in positions:
            class_ids[identity] = positions[name]
        elif identity in used:
            raise DataError(f"{file}: category {name!r} is not among the class names. Add it to 'names'.")
    return class_ids


def _find_images(file: Path, root: Path, names: list[str]) -> Callable[[str], Path]:
    """A function from file name to path: the rule that finds the first image holds for all images."""
    if not names:
        raise DataError(f"{file}: contains no image. Give a COCO file of this split.")
    split = file.stem.rpartition("_")[2]  # instances_train2017.json belongs to the folder train2017
    below = (".", split, "images", f"images/{split}")
    folders = list(dict.fromkeys(base / name for base in (file.parent, root, file.parent.parent) for name in below))
    for name in names:
        for folder in folders:
            if is_file(folder / name):
                return folder.joinpath
    for name in names[:NUM_TRIED]:
        for decode in (_without_host, _without_quotes):
            written = decode(name)
            is_whole = "://" not in name and not is_absolute(name) and not name.startswith("..")
            if place := find_place(folders, written, len(parts_of(written)) if is_whole else 1):
                logger.warning("%s: image %r is found as %s, others likewise", file, name, place.path(written))
                return functools.partial(_moved, place, decode)
    tried = ", ".join(str(folder) for folder in folders)
    raise DataError(f"{file}: no image {names[0]!r} in any of {tried}. Put the images into one of these folders.")


def _without_host(name: str) -> str:
    """The path of an address (``https://host/a.jpg``); other names unchanged."""
    _, is_address, address = name.partition("://")
    return address.partition("/")[2].partition("?")[0] if is_address else name


def _without_quotes(name: str) -> str:
    """As `_without_host`, with escapes such as %20 decoded."""
    return unquote(_without_host(name))


def _moved(place: Place, decode: Callable[[str], str], name: str) -> Path:
    return place.path(decode(name))


def _size_hw(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = (int(_number(image.get(key)) or 0) for key in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else None


def _add(file: Path, annotation: dict[str, Any], images: dict[object, PixelObjects], class_ids: dict[str, int]) -> None:
    where = f"{file}: annotation {annotation.get('id')!r}"
    image_id, category_id = _identity(annotation.get("image_id")), _identity(annotation.get("category_id"))
    if image_id not in images:
        raise DataError(f"{where}: there is no image {annotation.get('image_id')!r}. Correct or remove it.")
    if _is_crowd(annotation.get("iscrowd"), where):
        images[image_id].notices[CROWD] += 1
        return
    if category_id not in class_ids:
        raise DataError(f"{where}: there is no category {annotation.get('category_id')!r}. Correct or remove it.")
    corners = _corners(where, annotation, images[image_id].notices)
    images[image_id].rows.append((class_ids[category_id], *corners))


def _is_crowd(value: Any, where: str) -> bool:
    if value in (None, ""):
        return False
    known = {"0": False, "1": True, "false": False, "true": True}
    text = str(_identity(value) or value).lower()
    if text not in known:
        raise DataError(f"{where}: iscrowd: {str(value)[:40]!r}: not 0 or 1. Correct it.")
    return known[text]


def _corners(where: str, annotation: dict[str, Any], notices: Counter[str]) -> tuple[float, float, float, float]:
    """Corners in pixels of the box, or of the box around the polygons of an annotation without a box."""
    box = annotation.get("bbox")
    numbers = _numbers(box) if isinstance(box, list) else []
    if not box and (points := _polygon_points(annotation.get("segmentation"))):
        notices[REDUCED] += 1
        xs, ys = points[0::2], points[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    if len(numbers) != 4 or numbers[2] < 0 or numbers[3] < 0:
        raise DataError(f"{where}: bbox: {str(box)[:60]}: not x, y, width, height in pixels. Correct or remove it.")
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _polygon_points(segmentation: Any) -> list[float]:
    """x, y, x, y, ... of all polygons; empty for anything else, such as a run-length encoding."""
    if not isinstance(segmentation, list):
        return []
    polygons = segmentation if all(isinstance(polygon, list) for polygon in segmentation) else [segmentation]
    is_whole = all(len(polygon) % 2 == 0 for polygon in polygons)
    return _numbers([value for polygon in polygons for value in polygon]) if is_whole else []


def _numbers(values: list[Any]) -> list[float]:
    """The values as numbers; empty if one of them is no number."""
    numbers = [number for number in map(_number, values) if number is not None]
    return numbers if len(numbers) == len(values) else []
