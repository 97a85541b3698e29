"""The LightningDataModule: a data set, how it is cut into windows, and how its images are varied."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import albumentations as A
import lightning as L
from torch.utils.data import DataLoader

from data.augment import AugmentConfig
from data.batch import Batch
from data.dataset import TrainDataset, ValidationDataset
from data.dataset_yaml import read_dataset_yaml
from data.index import build_index
from data.loader import build_train_loader, build_validation_loader
from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.errors import ConfigError
from models import cache_folder

SYNTHETIC = "synthetic"
MAX_STRIDE_PX = 32


class DetectionData(L.LightningDataModule):
    """Training and validation windows of one data set."""

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        micro_batch_size: int | Literal["auto"] = "auto",
        image_size: int = 640,
        workers: int = 4,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008  frozen
        transforms: list[A.BasicTransform] | None = None,
        synthetic: SyntheticConfig = SyntheticConfig(),  # noqa: B008
        seed: int = 0,
        max_epochs: int = 100,
    ) -> None:
        """Read the description of the data set; images and labels follow in `setup`.

        Args:
            root: A ``data.yaml`` in Ultralytics' form, or ``synthetic`` for drawn circuit boards. Only read.
            batch_size: Effective batch: images per optimizer step, over all devices. Any number; exact.
            micro_batch_size: Images on a device at a time: what VRAM depends on. Any number up to the batch, or ``auto``:
                the fastest that stays within ``memory.budget``.
            image_size: Side of the network's square input in pixels, a multiple of 32. VRAM grows with its square.
            workers: Processes that prepare images; 0 prepares them in this one. Each keeps up to two windows in RAM.
            augment: How training images are varied.
            transforms: Albumentations to apply after the built-in augmentation.
            synthetic: What to draw if ``root`` is ``synthetic``.
            seed: Of every random draw; from ``seed_everything``.
            max_epochs: From ``trainer.max_epochs``.
        """
        super().__init__()
        if micro_batch_size == "auto":
            raise ConfigError("data.micro_batch_size: auto: is resolved by engine.fit; in a program, give a number")
        for key, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise ConfigError(f"data.{key}: {value}: must be at least 1")
        if micro_batch_size > batch_size:
            raise ConfigError(
                f"data.micro_batch_size: {micro_batch_size}: is more than data.batch_size ({batch_size}), the images "
                "of a whole optimizer step: lower it or raise data.batch_size"
            )
        if image_size < MAX_STRIDE_PX or image_size % MAX_STRIDE_PX:
            nearest = max(round(image_size / MAX_STRIDE_PX), 1) * MAX_STRIDE_PX
            raise ConfigError(f"data.image_size: {image_size}: must be a multiple of 32: use {nearest}")
        if workers < 0:
            raise ConfigError(f"data.workers: {workers}: must not be negative")
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.image_size = image_size
        self.workers = workers
        self.augment = augment
        self.transforms = transforms
        self.seed = seed
        self.max_epochs = max_epochs
        self.dataset_yaml = read_dataset_yaml(_synthetic_yaml(synthetic) if root == SYNTHETIC else Path(root))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by class id."""
        return list(self.dataset_yaml.names)

    def setup(self, stage: str) -> None:
        """Index images and labels of the splits that ``stage`` needs."""
        if stage == "fit":
            index = build_index(self.dataset_yaml, "train")
            self.train_dataset = TrainDataset(
                index, self.image_size, self.augment, self.seed, self.max_epochs, self.transforms
            )
        self.validation_dataset = ValidationDataset(build_index(self.dataset_yaml, "val"), self.image_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Windows of ``batch_size`` images, shuffled anew each epoch."""
        epoch, start_window = self._position()
        return build_train_loader(
            self.train_dataset,
            self.batch_size,
            self.workers,
            epoch=epoch,
            start_window=start_window,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )

    def _position(self) -> tuple[int, int]:
        """Where training starts or goes on: the epoch, and the windows of it that a resumed run has behind it."""
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress
        if progress.is_last_batch:  # the checkpoint was written at the end of an epoch, validation included
            return loop.epoch_progress.current.ready, 0
        return loop.epoch_progress.current.processed, progress.current.processed

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the size of a micro-batch: what fits in training fits in validation."""
        return build_validation_loader(
            self.validation_dataset,
            self.micro_batch_size * self.trainer.world_size,
            min(self.workers, 2),
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )


def _synthetic_yaml(config: SyntheticConfig) -> Path:
    """The drawn data set of this configuration, in the cache folder; drawn now if it is not there."""
    digest = hashlib.sha256(json.dumps(asdict(config)).encode()).hexdigest()[:12]
    return generate_pcb_dataset(cache_folder() / f"synthetic-{digest}", config)
