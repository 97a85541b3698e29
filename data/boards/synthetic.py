"""Makes a small data set of drawn circuit boards, for examples, tests and a first run without a download.

The boards (`data.boards.drawing`) depend on the configuration alone: the same configuration gives the same images
everywhere. A finished folder has a stamp and is used again. An interrupted run leaves no partial data set.

    python -m data.synthetic --output boards --num_train 200
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import yaml

from data.boards.drawing import CLASS_NAMES, draw_board
from data.errors import DataError

GENERATOR_VERSION = 1  # part of the stamp: raise it when the same configuration gives other images
STAMP = "synthetic.json"


@dataclass(frozen=True)
class SyntheticConfig:
    """A data set of drawn circuit boards."""

    num_train: int = 64
    """Training images."""
    num_val: int = 16
    """Validation images."""
    image_size: int = 320
    """Width and height of every image, in pixels."""
    image_format: Literal["jpg", "png"] = "jpg"
    """File format; png is lossless and about five times as big."""
    seed: int = 0
    """Another seed gives other boards."""

    def __post_init__(self) -> None:
        for key, minimum in (("num_train", 1), ("num_val", 1), ("image_size", 96), ("seed", 0)):
            if getattr(self, key) < minimum:
                raise DataError(f"{key}: {getattr(self, key)}: too small. Give {minimum} or more.")


def generate_pcb_dataset(folder: Path | str, config: SyntheticConfig | None = None) -> Path:
    """Make the data set in ``folder`` unless it is there; safe to call from several processes.

    The folder appears when it is complete. ``config`` None draws the defaults. Returns the path of ``data.yaml``.

    Raises:
        DataError: If the folder holds something else, or boards of another configuration, or cannot be written.
    """
    folder = Path(folder)
    config = config or SyntheticConfig()
    if not _is_complete(folder, config):
        try:
            _make(folder, config)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error.strerror}). Make room, or choose another folder "
                "(YOLOFIT_CACHE, for data.root: synthetic)."
            ) from error
    return folder / "data.yaml"


def _make(folder: Path, config: SyntheticConfig) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_dataset(scratch, config)
        _publish(scratch, folder, config)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _stamp(config: SyntheticConfig) -> dict[str, object]:
    return {"generator_version": GENERATOR_VERSION, **asdict(config)}


def _is_complete(folder: Path, config: SyntheticConfig) -> bool:
    """Whether ``folder`` holds exactly this data set; False if it is missing or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stamp = None
    if stamp != _stamp(config):
        raise DataError(f"{folder}: the folder contains something else than these boards. Give another folder.")
    return True


def _publish(scratch: Path, folder: Path, config: SyntheticConfig) -> None:
    try:
        scratch.replace(folder)  # atomic; replaces an empty folder, but not a filled one
    except OSError:
        if not _is_complete(folder, config):  # else another process has made the same boards
            raise


def _write_dataset(folder: Path, config: SyntheticConfig) -> None:
    for split_id, (split, num_images) in enumerate([("train", config.num_train), ("val", config.num_val)]):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(num_images):
            rng = np.random.default_rng([config.seed, split_id, index])
            image, boxes_xyxy_px, classes = draw_board(rng, config.image_size)
            _write_image(folder / "images" / split / f"{index:05d}.{config.image_format}", image)
            label = folder / "labels" / split / f"{index:05d}.txt"
            label.write_text(_label_text(boxes_xyxy_px, classes, config.image_size), encoding="utf-8")
    description = {"path": ".", "train": "images/train", "val": "images/val", "names": list(CLASS_NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    (folder / STAMP).write_text(json.dumps(_stamp(config), indent=2), encoding="utf-8")
    folder.chmod(0o755)  # the scratch folder was private


def _write_image(path: Path, image_rgb: np.ndarray) -> None:
    _, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    path.write_bytes(encoded.tobytes())


def _label_text(boxes_xyxy_px: np.ndarray, classes: np.ndarray, image_size: int) -> str:
    """YOLO rows: class, center and size, in fractions of the image."""
    corners = boxes_xyxy_px / image_size
    rows = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    return "".join(
        f"{class_id} {' '.join(f'{value:.6f}' for value in row)}\n" for class_id, row in zip(classes, rows, strict=True)
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line: ``python -m data.synthetic --output FOLDER``."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="python -m data.synthetic", description=main.__doc__)
    parser.add_argument("--output", type=str, required=True, help="Folder to make.")
    parser.add_class_arguments(SyntheticConfig)
    options = parser.parse_args(arguments)
    folder = options.pop("output")
    try:
        print(generate_pcb_dataset(folder, SyntheticConfig(**options.as_dict())))
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
