"""Statistics of the whole training augmentation against those of Ultralytics, over many results of the same images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import ultralytics.data.base
import yaml
from scipy.stats import ks_2samp
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Albumentations
from ultralytics.data.dataset import YOLODataset

from data.augmentation.augment import AugmentConfig, augment
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading.sampler import SampleKey, sample_generator
from data.loading.source import ImageSource

SIZE = 96
NUM_IMAGES = 6
NUM_PICTURES = 420
SMALLEST_P = 1e-3  # with fixed seeds a test passes or not for good; of some 50 comparisons, one in 20 would by chance
RECIPE = {"mosaic": 1.0, "translate": 0.1, "scale": 0.5, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "fliplr": 0.5}
CASES = {
    "recipe": {},
    "single pictures": {"mosaic": 0.0},
    "all warps": {"degrees": 20.0, "shear": 8.0, "perspective": 0.0005, "flipud": 0.4},
    "mixup": {"mixup": 0.6},
    "cutmix": {"cutmix": 0.6},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few smooth, bright scenes of different colors, each with the same three boxes in different places."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(3)
    for i in range(NUM_IMAGES):
        scene = cv2.resize(rng.integers(20, 256, (4, 4, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), scene)
        rows = [f"{i % 2} {x:.4f} {y:.4f} 0.2 {0.1 + 0.04 * i:.2f}" for x, y in rng.uniform(0.2, 0.8, (3, 2))]
        (tmp_path / "labels" / f"{i}.txt").write_text("\n".join(rows))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": ["a", "b"]}))
    return tmp_path


def their_pictures(folder: Path, settings: dict[str, float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    config = get_cfg(overrides={"bgr": 0.0, "flipud": 0.0, **settings})
    dataset = YOLODataset(
        img_path=str(folder / "images"), imgsz=SIZE, batch_size=2, augment=True, cache="ram", hyp=config,
        data={"names": {0: "a", 1: "b"}, "channels": 3}, task="detect",
    )  # fmt: skip
    for transform in dataset.transforms.transforms:
        if isinstance(transform, Albumentations):
            transform.transform = None
    for number in range(NUM_PICTURES):
        labels = dataset[number % NUM_IMAGES]
        yield labels["img"].numpy(), labels["bboxes"].numpy() * SIZE


def our_pictures(folder: Path, settings: dict[str, float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    source = ImageSource(build_index(read_dataset_yaml(folder / "data.yaml"), "train"), SIZE)
    for number in range(NUM_PICTURES):
        rng = sample_generator(1, SampleKey(number, number % NUM_IMAGES))
        image, boxes, _ = augment(source, number % NUM_IMAGES, rng, AugmentConfig(**settings))
        low, high = boxes[:, :2], boxes[:, 2:]
        yield image.transpose(2, 0, 1), np.concatenate([(low + high) / 2, high - low], axis=1)


def measure(pictures: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """The numbers to compare two sets of results by, one per image, as boxes of one image share scale and shift."""
    rows, boxes = [], []
    for image, boxes_cxcywh_px in pictures:
        hsv = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2HSV).reshape(-1, 3)
        halves = image[:, : SIZE // 2].mean() - image[:, SIZE // 2 :].mean()
        rows.append([len(boxes_cxcywh_px), *image.mean(axis=(1, 2)), image.std(), *hsv.mean(axis=0), halves])
        if len(boxes_cxcywh_px):
            boxes.append(boxes_cxcywh_px.mean(axis=0))
    names = ("boxes", "red", "green", "blue", "contrast", "hue", "saturation", "value", "upper less lower half")
    found = dict(zip(names, np.array(rows).T, strict=True))
    return found | dict(zip(("x", "y", "width", "height"), np.array(boxes).T, strict=True))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_augment__is_distributed_as_reference(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ultralytics.data.base, "LOCAL_RANK", 1)  # without its progress bar
    settings = RECIPE | CASES[case]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    theirs = measure(their_pictures(folder, settings))
    ours = measure(our_pictures(folder, settings))
    p_values = {name: ks_2samp(ours[name], theirs[name]).pvalue for name in ours}
    assert min(p_values.values()) > SMALLEST_P, {name: f"{value:.2g}" for name, value in p_values.items()}
    other = measure(our_pictures(folder, settings | {"hsv_v": 0.1, "translate": 0.4, "hsv_s": 0.2, "fliplr": 0.0}))
    assert sum(ks_2samp(other[name], theirs[name]).pvalue < SMALLEST_P for name in ours) >= 2  # so it would show
