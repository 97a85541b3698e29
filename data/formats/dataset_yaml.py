"""Reads ``data.yaml``, the Ultralytics description of a data set: class names and the paths of the splits.

.. code-block:: yaml

    path: .               # optional: root of the data set, relative to this file
    train: images/train   # a folder, a list file (.txt), a COCO file (.json), or several of them
    val: images/val       # or valid, or validation
    test: images/test     # optional
    names: [resistor, capacitor]   # or {0: resistor, 1: capacitor}; optional if all sources are COCO files
    nc: 2                 # optional, must agree with names
    kpt_shape: [17, 3]    # pose data sets: the key points behind each box are left out
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError
from data.formats.coco import read_category_names
from data.formats.moved_paths import find_place, is_absolute, parts_of
from data.formats.text import is_encodable, read_text

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # split: its keys


class _TextLoader(yaml.SafeLoader):
    """Reads numbers, dates and truth values as text."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  merges of maps


@dataclass(frozen=True)
class DatasetYaml:
    """The content of a ``data.yaml``, with every path resolved."""

    file: Path
    """The file that was read, absolute."""
    root: Path
    """The folder that relative paths refer to: the ``path`` key, or the folder of the file."""
    names: tuple[str, ...]
    """Class names; a label's class id is an index into it."""
    splits: dict[str, tuple[Path, ...]]
    """Folders, list files and COCO files of each existing split (``train``, ``val``, ``test``), in order."""
    missing: dict[str, str] = field(default_factory=dict)
    """Error line of each split that is named but does not exist."""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lines of each split about sources that were found elsewhere than written."""
    num_keypoint_values: int = 0
    """Numbers behind each box in a pose data set; 0 otherwise."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def sources(self, split: str) -> tuple[Path, ...]:
        """Folders, list files and COCO files of one split.

        Raises:
            DataError: If the file has no such split, or the split does not exist.
        """
        if split in self.missing:
            raise DataError(self.missing[split])
        if split not in self.splits:
            raise DataError(f"{self.file}: no key '{split}'. Name the folder of the {split} images.")
        return self.splits[split]


def read_dataset_yaml(file: Path | str) -> DatasetYaml:
    """Read and check a ``data.yaml``.

    A missing split is an error only when `DatasetYaml.sources` asks for it, because exporters always name three splits.

    Raises:
        DataError: If the file is missing or malformed, or lacks ``names`` or every split.
    """
    file = Path(file).absolute()
    content = _load(file)
    finder = _SourceFinder(file, content)
    splits: dict[str, tuple[Path, ...]] = {}
    missing: dict[str, str] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for split, keys in SPLITS.items():
        key = next((key for key in keys if content.get(key) not in (None, "", [])), None)
        if key is None:
            continue
        found = [finder.find(key, entry) for entry in _entries(file, key, content[key])]
        if lost := next((entry.lost for entry in found if entry.lost), None):
            missing[split] = lost
        else:
            splits[split] = tuple(entry.path for entry in found)
            notes[split] = tuple(entry.note for entry in found if entry.note)
    if not splits and not missing:
        raise DataError(f"{file}: no key 'train'. Name the folder of the training images.")
    files = [source for sources in splits.values() for source in sources]
    if content.get("names") is None and files and all(source.suffix.lower() == ".json" for source in files):
        names = read_category_names(min(files, key=lambda source: source.stat().st_size))  # parses fastest
    elif content.get("names") is None and missing:
        raise DataError(next(iter(missing.values())))  # the missing source may have the names
    else:
        names = _names(file, content)
    return DatasetYaml(file, finder.root, names, splits, missing, notes, _num_keypoint_values(file, content))


def _load(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise DataError(f"{file}: a folder. Give the data.yaml file inside it.")
    try:
        text = read_text(file)
        content = yaml.safe_load(text)
        loader = _TextLoader(text)
        document = loader.get_single_node()
        written = loader.construct_document(document) if document else None
    except FileNotFoundError:
        raise DataError(f"{file}: no such file. Give the data.yaml of a data set.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Give a readable UTF-8 file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates such as 2026-13-01
        raise DataError(f"{file}: not valid YAML ({' '.join(str(error).split())}). Correct it.") from None
    if not isinstance(content, dict) or not isinstance(document, yaml.MappingNode) or written is None:
        raise DataError(f"{file}: not a map of keys. Write keys such as train, val and names.")
    _check_keys(file, document)
    if isinstance(content.get("names"), list | dict):  # to YAML 0603 is the number 387, and no is false
        content["names"] = written["names"]
    return content


def _check_keys(file: Path, document: yaml.MappingNode) -> None:
    """Refuse a repeated key in the file or in its map of names: YAML would take the last one."""
    for found in (document, *(value for key, value in document.value if key.value == "names")):
        keys = [str(key.value) for key, _ in found.value] if isinstance(found, yaml.MappingNode) else []
        twice = next((key for key, count in Counter(keys).items() if count > 1 and key != "<<"), None)
        if twice is not None:
            raise DataError(f"{file}: the key {twice!r} occurs twice. Remove one of them.")


def _names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        ids = [int(key) if str(key).isdecimal() else str(key) for key in names]
        if set(ids) != set(range(len(ids))):
            ids.sort(key=lambda key: (isinstance(key, str), key))
            raise DataError(f"{file}: names: {ids}: the ids are not 0 to {len(ids) - 1}. Leave no gaps.")
        by_id = dict(zip(ids, names.values(), strict=True))
        names = [by_id[class_id] for class_id in range(len(ids))]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{file}: names: {names!r}: not a list of names nor a map from id to name. Write [pad, via]."
        )
    wrong = [name for name in names if not isinstance(name, str) or not name.strip() or not is_encodable(name)]
    if wrong:
        raise DataError(f"{file}: names: {wrong[0]!r}: not a name. Put quotes around it.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{file}: names: {name!r}: occurs {count} times. Give each class a name of its own.")
    if str(content.get("nc", len(names))) not in ("None", str(len(names))):
        raise DataError(f"{file}: nc: {content['nc']!r}: there are {len(names)} names. Make the two agree.")
    return tuple(names)


def _num_keypoint_values(file: Path, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)
    if not is_shape or shape[0] < 1 or shape[1] not in (2, 3):
        raise DataError(f"{file}: kpt_shape: {shape!r}: not a number of key points and 2 or 3. Write [17, 3].")
    return shape[0] * shape[1]


def _entries(file: Path, key: str, value: object) -> list[str]:
    entries: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{file}: {key}: {value!r}: not a path. Give a path or a list of paths.")
    return entries


@dataclass(frozen=True)
class _Found:
    """Where an entry of a split lies on this machine."""

    path: Path
    note: str = ""
    """Says where it was found, if not where it is written."""
    lost: str = ""
    """The error line, if it was not found."""


class _SourceFinder:
    """Finds the entries of a data.yaml below ``path`` or below the folder of the file.

    Roboflow writes ``../train/images`` into a file that lies beside ``train/``: the ``..`` are left out if the path
    does not exist as written. A path of another machine is found by its end.
    """

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self._file = file
        self._written_root = os.path.expanduser(str(content.get("path") or "."))  # noqa: PTH111  leaves ~nobody as it is
        self.root = file.parent / self._written_root
        self._hint = " (yolofit does not run 'download': fetch the data set first)" if content.get("download") else ""
        self._moved: dict[Path, str] = {}

    def find(self, key: str, entry: str) -> _Found:
        """Find one entry; ``key`` is for messages."""
        written = os.path.expanduser(entry)  # noqa: PTH111
        inside = Path(*[part for part in Path(written).parts if part != ".."])
        beside = [self._file.parent / written, self._file.parent / inside]
        for candidate in (self.root / written, *beside):
            if _exists(candidate):
                is_elsewhere = candidate in beside and not _exists(self.root)
                return _Found(candidate, self._note("path", self._written_root, candidate) if is_elsewhere else "")
        moved = self._find_moved(written)
        if moved is not None and self._moved.setdefault(moved, written) == written:
            return _Found(moved, self._note(key, entry, moved))
        lost = (
            f"{self._file}: {key}: {entry!r}: {self.root / written} does not exist. Give a folder, a list file or a "
            f"COCO file, relative to 'path' or to this file{self._hint}."
        )
        return _Found(self.root / written, lost=lost)

    def _find_moved(self, written: str) -> Path | None:
        """Find a path by its end: a relative entry by the whole of it, any other not by ``images`` alone."""
        num_kept = 2 if parts_of(written)[-1:] == ("images",) else 1
        if not is_absolute(written):
            num_kept = len(parts_of(written))
            written = f"{self._written_root}/{written}"
        place = find_place((self._file.parent, self.root, Path.cwd()), written, num_kept)
        return place.path(written) if place else None

    def _note(self, key: str, written: str, found: Path) -> str:
        return f"{self._file}: {key}: {written!r}: does not exist. {found} is used instead."


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  Path raises for names that are too long
