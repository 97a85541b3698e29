"""Reads ``data.yaml``, the Ultralytics description of a data set: class names and where the splits are.

.. code-block:: yaml

    path: .               # optional: root of the data set, relative to this file
    train: images/train   # a folder, a list file (.txt), a COCO file (.json), or several of them
    val: images/val
    test: images/test     # optional
    names: [resistor, capacitor]   # or {0: resistor, 1: capacitor}; may be left out if all sources are COCO files
    nc: 2                 # optional, must agree with names
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.coco import read_category_names
from data.errors import DataError

SPLITS = ("train", "val", "test")


class _TextLoader(yaml.SafeLoader):
    """Takes numbers, dates and truth values as the text that they are."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  merges of maps


@dataclass(frozen=True)
class DatasetYaml:
    """What a ``data.yaml`` says, with every path resolved and checked to exist."""

    file: Path
    """The file that was read, absolute."""
    root: Path
    """What relative paths are relative to: the ``path`` key, or the folder of the file."""
    names: tuple[str, ...]
    """Class names; a label's class id is an index into it."""
    splits: dict[str, tuple[Path, ...]]
    """Per split (``train``, ``val``, ``test``): folders of images, list files and COCO files, in order."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def sources(self, split: str) -> tuple[Path, ...]:
        """Folders, list files and COCO files of one split.

        Raises:
            DataError: If the file has no such split.
        """
        if split not in self.splits:
            raise DataError(f"{self.file}: no key '{split}': name the folder of the {split} images")
        return self.splits[split]


def read_dataset_yaml(file: Path | str) -> DatasetYaml:
    """Read and check a ``data.yaml``.

    Args:
        file: The YAML file.

    Returns:
        Class names and the existing sources of each split.

    Raises:
        DataError: If the file is missing or malformed, lacks ``names`` or ``train``, or names a path that is
            not there.
    """
    file = Path(file).absolute()
    content = _load(file)
    root = file.parent / str(content.get("path") or ".")
    given = [split for split in SPLITS if content.get(split) not in (None, "", [])]
    if "train" not in given:
        raise DataError(f"{file}: no key 'train': name the folder of the training images")
    splits = {split: _sources(file, root, split, content[split]) for split in given}
    files = [source for sources in splits.values() for source in sources]
    if content.get("names") is None and all(source.suffix.lower() == ".json" for source in files):
        names = read_category_names(min(files, key=lambda source: source.stat().st_size))  # the quickest to parse
    else:
        names = _names(file, content)
    return DatasetYaml(file, root, names, splits)


def _load(file: Path) -> dict[str, Any]:
    if file.is_dir():
        raise DataError(f"{file}: is a folder: give the data.yaml file inside it")
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file: give the data.yaml of a data set") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): give a readable UTF-8 file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second for dates such as 2026-13-01
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds {type(content).__name__}, expected keys such as train, val and names")
    content["names"] = _as_written(content.get("names"), text)
    return content


def _as_written(names: Any, text: str) -> Any:
    """The names as they stand in the file: to YAML ``0603`` is the number 387, and ``no`` is false."""
    if not isinstance(names, list | dict):
        return names
    written = _TextLoader(text).get_single_data()["names"]
    return written if isinstance(names, list) else dict(zip(names, written.values(), strict=False))


def _names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        ids = sorted(names, key=str)
        if set(ids) != set(range(len(ids))):
            raise DataError(f"{file}: names has the ids {ids}, expected 0 to {len(ids) - 1} without gaps")
        names = [names[class_id] for class_id in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names is {names!r}, expected a list of names or a map from id to name")
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise DataError(f"{file}: names has the entry {wrong[0]!r}, expected a name: put quotes round it")
    if content.get("nc") not in (None, len(names)):
        raise DataError(f"{file}: nc is {content['nc']!r}, but there are {len(names)} names: make them agree")
    return tuple(names)


def _sources(file: Path, root: Path, split: str, value: object) -> tuple[Path, ...]:
    entries: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{file}: {split} is {value!r}, expected a path or a list of paths")
    return tuple(_resolve(file, root, split, entry) for entry in entries)


def _resolve(file: Path, root: Path, split: str, entry: str) -> Path:
    """The existing path that ``entry`` means: below ``path``, or below the folder of the file itself.

    Roboflow writes ``../train/images`` into a file that lies beside ``train/``: the ``..`` are left out when
    the path as written does not exist.
    """
    inside = Path(*[part for part in Path(entry).parts if part != ".."])
    candidates = [root / entry, file.parent / entry, file.parent / inside]
    for candidate in candidates:
        if os.path.exists(candidate):  # noqa: PTH110  Path raises for what is too long for a name
            return candidate
    raise DataError(
        f"{file}: {split} is {entry!r}, but {candidates[0]} does not exist: "
        f"give a folder, a list file or a COCO file, relative to 'path' or to this file"
    )
