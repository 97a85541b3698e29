"""The exchanges: contexts that change one part of a trainer while a run trains.

Where a key of the trainer has the same effect, `fidelity_arms` sets that key instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from fidelity_run import Run, ultralytics_overrides

from data.augmentation.affine import is_candidate, transform_boxes
from data.augmentation.augment import AugmentConfig
from data.augmentation.letterbox import PAD_VALUE
from data.augmentation.picture import LabelledImage
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading import partners
from data.loading.batch import Batch
from data.loading.dataset import TrainDataset
from data.loading.loader import build_train_loader
from data.loading.partners import PartnerPools
from data.loading.ram_plan import Host, measure_volume, open_caches, plan_loading
from data.loading.sampler import WindowSampler
from models.detection.loss import MIN_NORMALISER, LossGains, LossSums

Exchange = Callable[[Run], AbstractContextManager[Any]]


def nothing(run: Run) -> AbstractContextManager[Any]:
    """Change nothing."""
    return nullcontext()


def pools_of(size: int) -> Exchange:
    """Take mosaic partners from pools of ``size`` images, although the cache has all images."""

    @contextmanager
    def exchange(run: Run) -> Iterator[None]:
        pools = mock.patch("data.loading.ram_plan.PartnerPools", lambda num, seed, _: PartnerPools(num, seed))
        with pools, mock.patch.object(partners, "POOL_SIZE", size):
            yield

    return exchange


def warp_as_theirs(run: Run) -> AbstractContextManager[Any]:
    """Warp the whole mosaic with ``cv2.warpAffine``, as Ultralytics does. yolofit resizes each tile onto its place."""
    return mock.patch("data.augmentation.augment.only_scales_and_shifts", lambda matrix: False)


@contextmanager
def warp_by_pixel_centers(run: Run) -> Iterator[None]:
    """Warp as `warp_as_theirs` does, but move pixels exactly as boxes.

    For ``cv2.warpAffine`` the center of the first pixel is at (0, 0). For boxes its corner is there.
    """
    with warp_as_theirs(run), mock.patch("data.augmentation.augment.warp", warped_by_centers):
        yield


def warped_by_centers(source: LabelledImage, matrix: np.ndarray, scale: float, output_size: int) -> LabelledImage:
    """Like `data.augmentation.affine.warp`, with a matrix for pixel centers: half a pixel added before and after."""
    to_corner, to_center = (np.array([[1, 0, half], [0, 1, half], [0, 0, 1]]) for half in (0.5, -0.5))
    by_centers = (to_center @ matrix @ to_corner)[:2]
    image = cv2.warpAffine(source.image, by_centers, (output_size,) * 2, borderValue=(PAD_VALUE,) * 3)
    boxes = transform_boxes(source.boxes_xyxy_px, matrix).clip(0, output_size)
    keep = is_candidate(source.boxes_xyxy_px * scale, boxes)
    return LabelledImage(image, boxes[keep].astype(np.float32), source.classes[keep])


def hsv_of_8_bits(run: Run) -> AbstractContextManager[Any]:
    """Shift colors with OpenCV's 8-bit HSV, which has 180 steps of hue. Has no effect if the device shifts colors."""
    return mock.patch("data.loading.dataset.shift_hsv_to_planes", shift_hsv_of_8_bits)


def shift_hsv_of_8_bits(image: np.ndarray, gains_3: np.ndarray, planes_3HW: np.ndarray) -> None:
    """Replace `data.augmentation.color.shift_hsv_to_planes` by what Ultralytics computes for ``gains_3``."""
    levels = np.arange(256.0)
    hue = (levels + gains_3[0] * 180) % 180
    saturation, value = (np.clip(levels * (1 + gain), 0, 255) for gain in gains_3[1:])
    saturation[0] = 0
    table = np.stack([hue, saturation, value], -1).astype(np.uint8)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table)
    cv2.split(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), list(planes_3HW))


def no_small_window(run: Run) -> AbstractContextManager[Any]:
    """Skip the last window of an epoch if it has fewer images than the others."""
    original = WindowSampler.__init__

    def init(sampler: WindowSampler, num_images: int, batch_size: int, *args: Any, **options: Any) -> None:
        original(sampler, num_images, batch_size, *args, **options)
        if num_images % batch_size:
            del sampler.window_stops[-1]

    return mock.patch.object(WindowSampler, "__init__", init)


def own_normalizers(run: Run) -> AbstractContextManager[Any]:
    """Divide the loss of every micro-batch by its own normalizer, as most trainers do. Accumulation is then inexact."""
    from engine.training import step

    exact = step.back_propagate

    def back_propagate(sums: LossSums, gains: LossGains, scale: torch.Tensor, scaler: Any) -> torch.Tensor:
        normalizer = sums.normaliser.clamp(min=MIN_NORMALISER)
        terms = (term / normalizer for term in (sums.box, sums.cls, sums.dfl))
        return exact(LossSums(*terms, normaliser=torch.ones_like(normalizer)), gains, scale, scaler)

    return mock.patch.object(step, "back_propagate", back_propagate)


def their_batches(run: Run) -> AbstractContextManager[Any]:
    """Train yolofit's step on the batches of Ultralytics' data set."""
    from engine.loop.datamodule import DetectionData

    return mock.patch.object(DetectionData, "train_dataloader", lambda module: TheirWindows(run))


def our_batches(run: Run) -> AbstractContextManager[Any]:
    """Train Ultralytics' step on yolofit's windows."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    original = DetectionTrainer.get_dataloader

    def get_dataloader(trainer: Any, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        theirs = original(trainer, path, batch_size, rank, mode)
        return OurWindows(run, theirs) if mode == "train" else theirs

    return mock.patch.object(DetectionTrainer, "get_dataloader", get_dataloader)


class TheirWindows:
    """Batches of Ultralytics' training data set as windows of yolofit; one iteration is one epoch.

    Here and in `OurWindows` an epoch begins with the first window, because trainers also make iterators that they never
    use.
    """

    def __init__(self, run: Run) -> None:
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
        yield from map(as_window, self.loader)


def as_window(batch: dict[str, Any]) -> Batch:
    """Convert a batch of Ultralytics (center boxes relative to the image) to a window (corner boxes in pixels)."""
    height, width = batch["img"].shape[2:]
    centers, sizes = batch["bboxes"][:, :2], batch["bboxes"][:, 2:]
    corners = torch.cat([centers - sizes / 2, centers + sizes / 2], 1) * torch.tensor([width, height] * 2)
    classes, image_index = batch["cls"].flatten().long(), batch["batch_idx"].long()
    return Batch(batch["img"], corners, classes, image_index, list(batch["im_file"]))


class OurWindows:
    """Training windows of yolofit as batches of Ultralytics; all other attributes are those of Ultralytics' loader."""

    def __init__(self, run: Run, theirs: Any) -> None:
        self.theirs = theirs
        index = build_index(read_dataset_yaml(run.data), "train")
        augment = AugmentConfig(close_mosaic=run.close_mosaic, **run.augment)
        dataset = TrainDataset(index, run.image_size, augment, run.seed, run.epochs)
        host = Host(ram_bytes=8 * 2**30, cores=1)
        plan = plan_loading(host, measure_volume(index, run.image_size, run.batch), "ram", 0)
        self.dataset = open_caches(dataset, plan, None, None)
        self.run = run
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.theirs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.theirs, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = build_train_loader(self.dataset, self.run.batch, 0, epoch=self.epoch)
        self.epoch += 1
        yield from map(as_their_batch, loader)


def as_their_batch(window: Batch) -> dict[str, Any]:
    """Convert a window (corner boxes in pixels) to a batch of Ultralytics (center boxes relative to the image)."""
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
