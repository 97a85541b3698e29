"""The LightningDataModule: a data set, its windows, and the augmentation of its images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import albumentations as A
import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from data.augmentation.augment import AugmentConfig
from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index, check_objects
from data.loading.balance import BalanceConfig, check_weighted_classes, image_repeats
from data.loading.batch import Batch
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.loader import build_train_loader, build_validation_loader
from data.loading.ram_plan import (
    CacheMode,
    Host,
    fit_validation,
    measure_volume,
    most_workers,
    open_caches,
    plan_loading,
    worker_count,
)
from data.loading.sampler import STRIDE_PX, WindowSampler, image_sizes
from data.loading.shared import is_forked
from engine.errors import ConfigError
from engine.machine.diagnosis import LoaderInUse
from engine.machine.inventory import free_disk_bytes, shm_free_bytes
from engine.memory.host import available_cores, ram_available_bytes
from engine.planning.data_section import SYNTHETIC, check_sizes, index_folder
from models import cache_folder

Split = Literal["train", "val", "test"]


class DetectionData(L.LightningDataModule):
    """The training and validation windows of one data set."""

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        micro_batch_size: int | Literal["auto"] = "auto",
        image_size: int = 640,
        multi_scale: float = 0.0,
        rectangular_validation: bool = False,
        workers: int | Literal["auto"] = "auto",
        cache: CacheMode = "auto",
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008  frozen
        transforms: list[A.BasicTransform] | None = None,
        balance: BalanceConfig = BalanceConfig(),  # noqa: B008
        synthetic: SyntheticConfig = SyntheticConfig(),  # noqa: B008
        seed: int = 0,
        max_epochs: int = 100,
        validation_split: Split = "val",
    ) -> None:
        """Read the description of the data set; `setup` reads images and labels.

        Args:
            root: A ``data.yaml`` in Ultralytics' form, or ``synthetic`` for drawn circuit boards. It is only read.
            batch_size: Effective batch: images per optimizer step on all devices. Any number; every micro-batch size
                gives the same step. It costs no VRAM; in RAM an image of a window takes 3 * image_size**2 bytes.
            micro_batch_size: Images on a device at a time: what VRAM depends on. Any number up to the effective batch;
                or ``auto``, the fastest one within ``memory.budget``.
            image_size: Side of the network's square input in pixels, a multiple of its largest stride: of 32 for most
                networks, of 64 for P6. VRAM grows with its square.
            multi_scale: Draws an image size for each optimizer step from the multiples of the stride that differ from
                ``image_size`` by at most this share (0 to 0.9). VRAM, windows in RAM and the plan are for the largest
                size: at 0.5, 2.25 times that of ``image_size``.
            rectangular_validation: Pads validation images to the multiple of the stride above their own sides, not to a
                square: less work and never more VRAM. Metrics change a little because there is less gray padding, but
                do not depend on the batch size. No effect on training.
            workers: Processes that prepare images; 0 prepares them in the training process. Each takes about 150 MiB of
                RAM and three windows. Where workers are not forked, it is 600 MiB, and the windows lie in /dev/shm.
                ``auto`` takes one for each core but one, up to 8, as far as RAM allows.
            cache: Where images are kept for the next epoch: ``ram`` decoded, as many as fit, up to 3 * image_size**2
                bytes each, once for all workers; ``disk`` decoded, as much in the cache folder; ``none``; ``auto`` what
                fits of these and of compressed files in RAM, which take the size of the files.
            augment: How training images are varied.
            transforms: Albumentations to apply after the built-in augmentation. The host then changes the colors, and
                each worker briefly holds some copies of one image.
            balance: Which images are shown more often, for rare classes.
            synthetic: What to draw if ``root`` is ``synthetic``.
            seed: Seed of every random draw; from ``seed_everything``.
            max_epochs: Epochs of the run; from ``trainer.max_epochs``.
            validation_split: Images to validate on.
        """
        super().__init__()
        check_sizes(batch_size, micro_batch_size, image_size, multi_scale, stride_px=1)  # `setup` knows the network's
        if micro_batch_size == "auto":
            raise ConfigError(
                "data.micro_batch_size: auto: only engine.fit resolves auto. In your own code, give a number."
            )
        workers = worker_count(workers, available_cores())
        if workers < 0:
            raise ConfigError(f"data.workers: {workers}: must not be negative")
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.image_size = image_size
        self.multi_scale = multi_scale
        self.rectangular_validation = rectangular_validation
        self.workers = workers
        self.validation_workers: int | None = None
        self.validation_split = validation_split
        self.cache = cache
        self.balance = balance
        self.augment = augment
        self.transforms = transforms
        self.seed = seed
        self.max_epochs = max_epochs
        self.dataset_yaml = read_dataset_yaml(_synthetic_yaml(synthetic) if root == SYNTHETIC else Path(root))
        check_weighted_classes(balance, self.dataset_yaml.names)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by class id."""
        return list(self.dataset_yaml.names)

    @property
    def stride_px(self) -> int:
        """The largest stride of the network; sides of images are multiples of it."""
        return getattr(self.trainer.lightning_module, "stride_px", STRIDE_PX)

    def setup(self, stage: str) -> None:
        """Index the images and labels of the splits that ``stage`` needs.

        Raises:
            ConfigError: If the network does not take images of this size.
        """
        check_sizes(self.batch_size, self.micro_batch_size, self.image_size, self.multi_scale, self.stride_px)
        if stage == "fit":
            index = self._index("train")
            check_objects(self.dataset_yaml, index)
            self.train_dataset = TrainDataset(
                index,
                self.image_size,
                self.augment,
                self.seed,
                self.max_epochs,
                self.transforms,
                color_on_device=self.trainer.strategy.root_device.type == "cuda",
            )
            self._plan_loading()
        index = self._index(self.validation_split)
        self.validation_dataset = ValidationDataset(
            index, self.image_size, self.rectangular_validation, self.stride_px
        )

    def state_dict(self) -> dict[str, str]:
        """Return where mosaic partners come from, for ``last.ckpt``."""
        return {"mosaic_partners": self.loading.partners}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Print a note if the resumed run takes mosaic partners from elsewhere, as it caches more or fewer images."""
        before, now = state.get("mosaic_partners"), self.loading.partners
        if before not in (None, now):
            rank_zero_only(print)(f"note: mosaic partners come from {now} from here on, before from {before}")

    def count_batches(self, num_devices: int) -> tuple[int, int]:
        """Count the optimizer steps of an epoch and the batches of a validation before the run begins."""
        index, num_images = self._index("train"), len(self._index("val"))
        repeats = image_repeats(index, tuple(self.class_names), self.balance)
        windows = WindowSampler(
            len(index), self.batch_size, self.seed, shuffle=True, num_replicas=num_devices, repeats=repeats
        )
        return len(windows), -(-num_images // (self.micro_batch_size * num_devices))

    def _index(self, split: str) -> ImageIndex:
        return build_index(self.dataset_yaml, split, index_folder(), max(self.workers, 1))

    def _plan_loading(self) -> None:
        """Fit workers, windows and caches into what this machine has for each process."""
        dataset = self.train_dataset
        index = dataset.source.index
        volume = measure_volume(index, self.image_size, self.batch_size, self.trainer.world_size)
        self.volume = replace(volume, largest_size=image_sizes(self.image_size, self.multi_scale, self.stride_px)[-1])
        self.validation_workers, host = self._fit_validation()
        self.loading = plan_loading(host, self.volume, self.cache, self.workers)
        rank_zero_only(print)(self.loading.describe())
        self._first_epoch: int | None = None  # fills the caches
        self.train_dataset = open_caches(dataset, self.loading, cache_folder() / "decoded", ram_available_bytes)
        self.repeats = image_repeats(index, tuple(self.class_names), self.balance)

    def _fit_validation(self) -> tuple[int, Host]:
        """Return the workers of the validation loader, and what remains for training."""
        return fit_validation(self._host(), self.micro_batch_size * 3 * self.image_size**2, self.workers)

    def _host(self) -> Host:
        """Return this process's share of what the machine has left."""
        num_processes = max(self.trainer.num_devices, 1)
        shm_bytes = shm_free_bytes()
        return Host(
            ram_bytes=ram_available_bytes() // num_processes,
            cores=available_cores() // num_processes,
            is_forked=is_forked(),
            shm_bytes=None if shm_bytes is None else shm_bytes // num_processes,
            disk_bytes=free_disk_bytes(cache_folder()) // num_processes,
        )

    def loader_in_use(self) -> LoaderInUse:
        """Describe the training loader in use, and what it could be, for advice."""
        plan, host, source = self.loading, self._host(), self.train_dataset.source
        kept = source.files if plan.cache == "files" else source.cache
        is_given_up = plan.cache != "none" and kept is not None and kept.is_closed
        cache = "none" if is_given_up else plan.cache
        fitting = plan_loading(host, self.volume, "auto", plan.workers).cache if self.cache == "none" else "none"
        return LoaderInUse(
            workers=plan.workers,
            cores=host.cores,
            cache=cache,
            most_workers=most_workers(plan, host, self.volume, max(host.cores - 1, 1)),
            is_cache_given_up=is_given_up,
            is_filling_cache=cache != "none" and self.trainer.current_epoch == self._first_epoch,
            cache_that_fits=fitting if fitting in ("ram", "disk") else "",
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Make the loader of windows of ``batch_size`` images, shuffled anew in each epoch."""
        epoch, start_window = self._position()
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        return build_train_loader(
            self.train_dataset,
            self.batch_size,
            self.loading.workers,
            epoch=epoch,
            start_window=start_window,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
            prefetch=self.loading.prefetch,
            repeats=self.repeats,
            multi_scale=self.multi_scale,
            stride_px=self.stride_px,
        )

    def _position(self) -> tuple[int, int]:
        """Return the epoch at which training starts or resumes, and the windows of it that are done."""
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress
        epoch = loop.epoch_progress.current
        if progress.is_last_batch or epoch.processed == epoch.ready:  # the checkpoint is of an epoch's end
            return epoch.ready, 0
        return epoch.processed, progress.current.processed

    def val_dataloader(self) -> DataLoader[Batch]:
        """Make the loader of validation batches, which have the size of a micro-batch: they fit if training fits."""
        if self.validation_workers is None:  # no training has planned them
            self.validation_workers, _ = self._fit_validation()
        return build_validation_loader(
            self.validation_dataset,
            self.micro_batch_size * self.trainer.world_size,
            self.validation_workers,
            num_replicas=self.trainer.world_size,
            rank=self.trainer.global_rank,
        )


def _synthetic_yaml(config: SyntheticConfig) -> Path:
    """Return the drawn data set of a configuration in the cache folder; draw it if it is not there."""
    digest = hashlib.sha256(json.dumps(asdict(config)).encode()).hexdigest()[:12]
    return generate_pcb_dataset(cache_folder() / f"synthetic-{digest}", config)
