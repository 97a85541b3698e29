"""A data set writer: any images, any label text, on disk below ``tmp_path``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index

WriteDataset = Callable[..., Path]


def write_dataset(
    root: Path,
    sizes_hw: list[tuple[int, int]],
    labels: list[str | None],
    names: tuple[str, ...] = ("a", "b", "c"),
) -> Path:
    """Noise images ``000.png``... with the given label texts (None: no file); returns the data.yaml."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / "train" / folder).mkdir(parents=True)
    for i, ((height, width), text) in enumerate(zip(sizes_hw, labels, strict=True)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train" / "images" / f"{i:03d}.png"), image)
        if text is not None:
            (root / "train" / "labels" / f"{i:03d}.txt").write_text(text)
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "train/images", "val": "train/images", "names": list(names)}))
    return file


@pytest.fixture
def dataset_writer(tmp_path: Path) -> WriteDataset:
    """`write_dataset` below the test's own folder."""
    return lambda *args, **kwargs: write_dataset(tmp_path / "set", *args, **kwargs)


SIZES_HW = [(64, 64), (48, 64), (64, 40), (128, 100), (30, 50), (64, 64), (70, 64)]
LABELS = [
    "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.2 0.3\n",
    "2 0.5 0.5 0.9 0.9\n",
    "",
    "1 0.3 0.6 0.4 0.2\n0 0.7 0.2 0.3 0.3\n2 0.5 0.8 0.2 0.2\n",
    None,
    "0 0.2 0.8 0.3 0.3\n",
    "1 0.6 0.4 0.5 0.6\n",
]


@pytest.fixture
def yaml_file(dataset_writer: WriteDataset) -> Path:
    """Seven images of several shapes; one without objects, one without a label file."""
    return dataset_writer(SIZES_HW, LABELS)


@pytest.fixture
def index(yaml_file: Path) -> ImageIndex:
    """The index of `yaml_file`."""
    return build_index(read_dataset_yaml(yaml_file), "train")
