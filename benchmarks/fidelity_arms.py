"""The sides of a comparison: either trainer as it is, or with one thing exchanged, so that its effect stands alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from data import partners
from data.augment import AugmentConfig
from data.batch import Batch
from data.dataset import TrainDataset
from data.dataset_yaml import read_dataset_yaml
from data.index import build_index
from data.loader import build_train_loader
from data.memory import Host, measure_volume, open_caches, plan_loading

if TYPE_CHECKING:
    from fidelity import Run

WHOLE_SET = 1_000_000_000
"""A pool size that no data set reaches: all of it is one pool."""


@dataclass(frozen=True)
class Arm:
    """A trainer, and what is exchanged in it."""

    trainer: str
    """``yolofit`` or ``ultralytics``."""
    exchange: Callable[[Run], AbstractContextManager[Any]] = lambda run: nullcontext()
    """Entered for the time of the training."""


def pools_of(size: int) -> Callable[[Run], AbstractContextManager[Any]]:
    """Mosaic partners from pools of so many images."""
    return lambda run: mock.patch.object(partners, "POOL_SIZE", size)


def their_batches(run: Run) -> AbstractContextManager[Any]:
    """Our step on the windows of Ultralytics' data set."""
    from engine.datamodule import DetectionData

    return mock.patch.object(DetectionData, "train_dataloader", lambda module: TheirWindows(run))


def our_batches(run: Run) -> AbstractContextManager[Any]:
    """Ultralytics' step on our windows."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    original = DetectionTrainer.get_dataloader

    def get_dataloader(trainer: Any, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        theirs = original(trainer, path, batch_size, rank, mode)
        return OurWindows(run, theirs) if mode == "train" else theirs

    return mock.patch.object(DetectionTrainer, "get_dataloader", get_dataloader)


class TheirWindows:
    """Batches of Ultralytics' training data set as our windows; an iteration is an epoch."""

    def __init__(self, run: Run) -> None:
        from fidelity import ultralytics_overrides
        from ultralytics.cfg import get_cfg
        from ultralytics.data.build import build_yolo_dataset
        from ultralytics.data.utils import check_det_dataset

        self.config = get_cfg(overrides=ultralytics_overrides(run))
        data = check_det_dataset(str(run.data))
        self.dataset = build_yolo_dataset(self.config, data["train"], run.batch, data, mode="train")
        self.first_plain_epoch = run.epochs - run.close_mosaic
        self.epoch = 0
        order = torch.Generator().manual_seed(run.seed)
        self.loader = torch.utils.data.DataLoader(
            self.dataset, run.batch, shuffle=True, generator=order, collate_fn=self.dataset.collate_fn
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if self.epoch == self.first_plain_epoch:
            self.dataset.close_mosaic(hyp=self.config)
        self.epoch += 1
        return map(as_window, self.loader)


def as_window(batch: dict[str, Any]) -> Batch:
    """A batch of theirs as one of ours."""
    height, width = batch["img"].shape[2:]
    centres, sizes = batch["bboxes"][:, :2], batch["bboxes"][:, 2:]
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], 1) * torch.tensor([width, height] * 2)
    classes, image_index = batch["cls"].flatten().long(), batch["batch_idx"].long()
    return Batch(batch["img"], corners, classes, image_index, list(batch["im_file"]))


class OurWindows:
    """Our training windows as their batches; everything else of their loader stays."""

    def __init__(self, run: Run, theirs: Any) -> None:
        self.theirs = theirs
        index = build_index(read_dataset_yaml(run.data), "train")
        augment = AugmentConfig(close_mosaic=run.close_mosaic, **run.augment)
        dataset = TrainDataset(index, run.image_size, augment, run.seed, run.epochs)
        host = Host(ram_bytes=8 * 2**30, cores=1)
        open_caches(dataset, plan_loading(host, measure_volume(index, run.image_size, run.batch), "ram", 0), None, None)
        self.dataset = dataset
        self.run = run
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.theirs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = build_train_loader(self.dataset, self.run.batch, 0, epoch=self.epoch)
        self.epoch += 1
        return map(as_their_batch, loader)


def as_their_batch(window: Batch) -> dict[str, Any]:
    """A window of ours as a batch of theirs."""
    height, width = window.images.shape[2:]
    first, second = window.boxes_xyxy_px[:, :2], window.boxes_xyxy_px[:, 2:]
    boxes = torch.cat([(first + second) / 2, second - first], 1) / torch.tensor([width, height] * 2)
    return {
        "img": window.images,
        "bboxes": boxes,
        "cls": window.classes[:, None].float(),
        "batch_idx": window.image_index.float(),
        "im_file": window.names,
    }


ARMS = {
    "yolofit": Arm("yolofit"),
    "ultralytics": Arm("ultralytics"),
    "yolofit, pools of 16": Arm("yolofit", pools_of(16)),
    "yolofit, pools of 256": Arm("yolofit", pools_of(256)),
    "yolofit, partners from the whole set": Arm("yolofit", pools_of(WHOLE_SET)),
    "yolofit, their batches": Arm("yolofit", their_batches),
    "ultralytics, our batches": Arm("ultralytics", our_batches),
}
