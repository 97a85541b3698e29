"""Reads COCO detection files: the images and boxes of a whole split in one JSON file.

Classes are matched by name, so category ids may have gaps and differ between the files of the splits. Crowd
regions are left out: they are no objects. Polygons need not be reduced, for COCO gives the box as well.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.labels import CROWD, PixelObjects, Row
from data.listing import is_file

MAX_COORDINATE_PX = 1e9  # also refuses nan and integers too long for a float


class CocoFile:
    """One COCO file.

    Memory: the parsed JSON, about five times the file, while this object lives.
    """

    def __init__(self, file: Path, root: Path, names: tuple[str, ...]) -> None:
        """Parse the file.

        Args:
            file: The JSON file.
            root: The data set's root: images are looked for here and beside the file.
            names: Class names; the categories must be among them.

        Raises:
            DataError: If the file is no COCO file, or a category, an annotation or an image is wrong.
        """
        self.file = file
        content = _load(file)
        class_ids = _class_ids(file, content, names)
        images = _by_id(file, content, "images", "file_name")
        self._objects: dict[str, PixelObjects] = {}
        folder = _image_folder(file, root, images)
        by_image_id: dict[object, PixelObjects] = {}
        for image_id, image in images.items():
            path = str(folder / image["file_name"])
            if path in self._objects:
                raise DataError(f"{file}: image {image['file_name']!r} is listed twice: remove one of the two")
            by_image_id[image_id] = PixelObjects(f"{file}: {image['file_name']}", _size_hw(image), [], Counter())
            self._objects[path] = by_image_id[image_id]
        for annotation in _entries(file, content, "annotations"):
            _add(file, annotation, by_image_id, class_ids)

    @property
    def paths(self) -> list[str]:
        """Image files, in the file's order."""
        return list(self._objects)

    def objects(self, path: str) -> PixelObjects:
        """What is annotated in one of `paths`."""
        return self._objects[path]


def read_category_names(file: Path) -> tuple[str, ...]:
    """Names of the categories, in the order of their ids: the class names, where data.yaml has none.

    Raises:
        DataError: If the file is no COCO file.
    """
    categories = _by_id(file, _load(file), "categories", "name")
    try:
        ordered = sorted(categories.items())
    except TypeError:
        raise DataError(f"{file}: the ids of its categories are not all numbers: correct them") from None
    names = tuple(str(category["name"]) for _, category in ordered)
    if not names or len(set(names)) < len(names):
        raise DataError(f"{file}: its categories are missing or share a name: give 'names' in data.yaml")
    return names


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): give a readable COCO file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not valid JSON ({error}): give a COCO file") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise DataError(f"{file}: is no COCO file: expected the keys images, annotations and categories")
    return content


def _entries(file: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{file}: {key} is not a list of objects: give a COCO file")
    return entries


def _by_id(file: Path, content: dict[str, Any], key: str, needed: str) -> dict[object, dict[str, Any]]:
    """The entries of ``key`` by their ids."""
    found: dict[object, dict[str, Any]] = {}
    for entry in _entries(file, content, key):
        identity = entry.get("id")
        if not isinstance(identity, int | str) or identity in found or not isinstance(entry.get(needed), str):
            raise DataError(f"{file}: {key}: id {identity!r} is missing or repeated, or has no {needed}: correct it")
        found[identity] = entry
    return found


def _class_ids(file: Path, content: dict[str, Any], names: tuple[str, ...]) -> dict[object, int]:
    """Class id by category id; categories that no annotation uses may have any name."""
    used = {str(annotation.get("category_id")) for annotation in _entries(file, content, "annotations")}
    positions = {name: position for position, name in enumerate(names)}
    class_ids = {}
    for identity, category in _by_id(file, content, "categories", "name").items():
        if category["name"] in positions:
            class_ids[identity] = positions[category["name"]]
        elif str(identity) in used:
            raise DataError(f"{file}: category {category['name']!r} is not among the class names: add it to 'names'")
    return class_ids


def _image_folder(file: Path, root: Path, images: dict[object, dict[str, Any]]) -> Path:
    """The folder that the file names are relative to: where the first image that is there is found."""
    if not images:
        raise DataError(f"{file}: holds no image: give a COCO file of this split")
    names = [image["file_name"] for image in images.values()]
    split = file.stem.rpartition("_")[2]  # instances_train2017.json belongs to the folder train2017
    below = (".", split, "images", f"images/{split}")
    folders = list(dict.fromkeys(base / name for base in (file.parent, root, file.parent.parent) for name in below))
    for name in names:
        for folder in folders:
            if is_file(folder / name):
                return folder
    tried = ", ".join(str(folder) for folder in folders)
    raise DataError(f"{file}: no image {names[0]!r} in any of {tried}: put the images into one of these folders")


def _size_hw(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = _side(image.get("height")), _side(image.get("width"))
    return (height, width) if height and width else None


def _side(value: Any) -> int:
    """Length in pixels; 0 for what says nothing."""
    return int(value) if isinstance(value, int | float) and 0 < value < MAX_COORDINATE_PX else 0


def _add(
    file: Path, annotation: dict[str, Any], images: dict[object, PixelObjects], class_ids: dict[object, int]
) -> None:
    where = f"{file}: annotation {annotation.get('id')!r}"
    image_id, category_id, box = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
    if not isinstance(image_id, int | str) or image_id not in images:
        raise DataError(f"{where}: there is no image {image_id!r}: correct or remove it")
    if annotation.get("iscrowd"):
        images[image_id].notices[CROWD] += 1
        return
    if not isinstance(category_id, int | str) or category_id not in class_ids:
        raise DataError(f"{where}: there is no category {category_id!r}: correct or remove it")
    images[image_id].rows.append(_row(where, class_ids[category_id], box))


def _row(where: str, class_id: int, box: Any) -> Row:
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not is_box or not all(abs(value) < MAX_COORDINATE_PX for value in box) or box[2] < 0 or box[3] < 0:
        raise DataError(f"{where}: bbox is {str(box)[:60]}, not x, y, width, height in pixels: correct or remove it")
    x, y, width, height = (float(value) for value in box)
    return class_id, x, y, x + width, y + height
