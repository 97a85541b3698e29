"""Plans the RAM of the loader before the run.

Three things take RAM: windows that wait for training, decoded images for mosaics, and the cache. If workers are not
forked, all three lie in /dev/shm. `plan_loading` fits them into a budget and says what it chose and why. `open_caches`
carries out the plan. The caller gives the RAM and cores of the machine as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np

from data.errors import DataError
from data.formats.image import read_size
from data.indexing.index import ImageIndex
from data.loading.cache import DecodedCache, FileCache, RecentImages
from data.loading.dataset import TrainDataset
from data.loading.partners import POOL_SIZE, PartnerPools
from data.loading.ring import blocks_per_worker

CacheMode = Literal["none", "ram", "disk", "auto"]
Cache = Literal["none", "ram", "files", "disk"]
GIB = 2**30

RAM_SHARE = 0.6  # of the free RAM, for the loader; the rest is for the training process and others
SHM_SHARE = 0.8  # of the free bytes of /dev/shm
FLOOR_SHARE = 0.1  # of the free RAM: with less left no cache grows
WORKER_BYTES = 150 * 2**20  # private to a forked worker; measured: 40 to 75 MiB beside its samples
SPAWNED_WORKER_BYTES = 600 * 2**20  # private to a worker that loads all libraries itself; measured: 330 to 560 MiB
MAX_WORKERS = 8  # of ``auto``
VALIDATION_WORKERS = 2  # at most
PREFETCH = 2  # windows ahead per worker
NUM_SAMPLES = 64
SLOW_DECODE_RATIO = 2.0  # files of this many times the image size are slower to decode than to read decoded
DISK_RESERVE_BYTES = 2 * GIB


@dataclass(frozen=True)
class Host:
    """What the machine or its container has left for this process."""

    ram_bytes: int
    """RAM that is free without swapping."""
    cores: int
    """Processor cores."""
    shm_bytes: int | None = None
    """Free bytes of /dev/shm; None where windows and caches do not lie there."""
    disk_bytes: int = 0
    """Free bytes of the disk with the cache folder."""
    is_forked: bool = True
    """Workers are forked and share what the training process has loaded."""

    @property
    def worker_bytes(self) -> int:
        """Private memory of one worker, in bytes."""
        return worker_bytes(self.is_forked)


@dataclass(frozen=True)
class Volume:
    """The amount of data that one process (one device) loads."""

    num_images: int
    image_size: int
    batch_size: int
    """Images per window over all devices."""
    window_images: int
    """Images per window of this process."""
    picture_bytes: int
    """Bytes of a decoded image at the image size, on average."""
    file_bytes: int
    """Bytes of an image file, on average."""
    size_ratio: float = 1.0
    """Long side of the image files over the image size, on average."""
    largest_size: int = 0
    """Largest image size of multi-scale training in pixels; 0 without it."""

    @property
    def slot_bytes(self) -> int:
        """Bytes of the largest decoded image."""
        return 3 * self.image_size**2

    @property
    def window_bytes(self) -> int:
        """Bytes of the images of a window, at the largest image size."""
        return self.window_images * 3 * (self.largest_size or self.image_size) ** 2


@dataclass(frozen=True)
class LoadPlan:
    """What the loader will do, and the RAM that it takes."""

    workers: int
    prefetch: int
    """Windows that each worker makes ahead."""
    cache: Cache
    cached_images: int
    """Images that the cache has room for."""
    recent_images: int
    """Decoded images kept for mosaics; 0 where the cache keeps decoded images."""
    keeps_all_decoded: bool
    """The cache has room for every image, decoded: mosaic partners come from the whole data set."""
    window_bytes: int
    """RAM of all windows in flight."""
    cache_bytes: int
    """RAM of the cache and the recent images."""
    ram_bytes: int
    """RAM of everything, workers included."""
    floor_bytes: int
    """With less RAM left than this, the cache stops growing; with less than half of it, it is dropped."""
    reason: str
    """Why the plan has this cache and this number of workers."""

    @property
    def partners(self) -> str:
        """Where mosaic partners come from, in words."""
        return "the whole data set" if self.keeps_all_decoded else f"pools of {POOL_SIZE} images"

    def describe(self) -> str:
        """One line for the user."""
        return (
            f"loader: {self.workers} workers, {self.prefetch} windows ahead each, cache {self.cache}, "
            f"{self.ram_bytes / GIB:.1f} GiB of RAM ({self.window_bytes / GIB:.2f} windows, "
            f"{self.cache_bytes / GIB:.2f} cache), mosaic partners from {self.partners}: {self.reason}"
        )


def measure_volume(index: ImageIndex, image_size: int, batch_size: int, num_replicas: int = 1) -> Volume:
    """Estimate the size of all images from `NUM_SAMPLES` evenly spread ones."""
    chosen = np.unique(np.linspace(0, len(index) - 1, NUM_SAMPLES).astype(int))
    files, pictures, ratios = [], [], []
    for image in chosen.tolist():
        path = index.path(image)
        try:
            height, width = read_size(path)
        except DataError:
            continue  # the reader of the image reports it
        files.append(Path(path).stat().st_size)
        long_side = max(width, height)
        pictures.append(3 * image_size**2 * min(width, height) / long_side)
        ratios.append(long_side / image_size)
    return Volume(
        num_images=len(index),
        image_size=image_size,
        batch_size=batch_size,
        window_images=-(-batch_size // num_replicas),
        picture_bytes=int(np.mean(pictures)) if pictures else 3 * image_size**2,
        file_bytes=int(np.mean(files)) if files else 0,
        size_ratio=float(np.mean(ratios)) if ratios else 1.0,
    )


def plan_loading(
    host: Host, volume: Volume, cache: CacheMode = "auto", workers: int | Literal["auto"] = "auto"
) -> LoadPlan:
    """Fit workers, windows and cache into what the machine has.

    Windows come first, then the images that mosaics are drawn from, then the cache. With too little room the plan makes
    fewer windows ahead, then starts fewer workers.

    Args:
        host: What the machine has.
        volume: What is to be loaded.
        cache: ``ram``: decoded, as many images as fit. ``disk``: decoded, in a file. ``auto``: decoded in RAM if all
            fit, else compressed files in RAM if these fit, else on disk if files are large (reading a decoded image is
            hardly faster than decoding a small one), else none.
        workers: Processes, or ``auto``: one for each core but the one that trains, up to `MAX_WORKERS`.

    Returns:
        The plan. With 0 workers the training process makes one window at a time.
    """
    budget_bytes = int(host.ram_bytes * RAM_SHARE)
    count = worker_count(workers, host.cores)
    count, prefetch, why_workers = _fit_windows(host, volume, count, budget_bytes)
    windows = _num_windows(count, prefetch) * volume.window_bytes
    left_bytes = budget_bytes - windows - count * host.worker_bytes
    if host.shm_bytes is not None:
        reserved = reserved_bytes(count, prefetch, volume.window_bytes)
        left_bytes = min(left_bytes, int(host.shm_bytes * SHM_SHARE) - reserved)
    left_bytes = max(left_bytes, 0)
    recent = min(count * prefetch * volume.batch_size + 2 * POOL_SIZE, volume.num_images)
    recent = min(recent, left_bytes // 2 // volume.slot_bytes)
    chosen, images, why_cache = _choose_cache(host, volume, cache, left_bytes - recent * volume.slot_bytes)
    keeps_decoded = chosen in ("ram", "disk")
    if keeps_decoded:
        recent = 0
    image_bytes = {"ram": volume.picture_bytes, "files": volume.file_bytes}.get(chosen, 0)
    cache_bytes = recent * volume.slot_bytes + images * image_bytes
    return LoadPlan(
        workers=count,
        prefetch=prefetch,
        cache=chosen,
        cached_images=images,
        recent_images=recent,
        keeps_all_decoded=keeps_decoded and images == volume.num_images,
        window_bytes=windows,
        cache_bytes=cache_bytes,
        ram_bytes=windows + cache_bytes + count * host.worker_bytes,
        floor_bytes=int(host.ram_bytes * FLOOR_SHARE),
        reason=f"{why_cache}; {why_workers}",
    )


def worker_bytes(is_forked: bool) -> int:
    """Private memory of one worker, in bytes, without the blocks and caches that processes share."""
    return WORKER_BYTES if is_forked else SPAWNED_WORKER_BYTES


def worker_count(workers: int | Literal["auto"], cores: int) -> int:
    """The number of workers: as given, or for ``auto`` one for each core but the one that trains."""
    return max(min(cores - 1, MAX_WORKERS), 1) if workers == "auto" else workers


def reserved_bytes(workers: int, prefetch: int, window_bytes: int) -> int:
    """Bytes that the blocks of all workers take of /dev/shm where they lie there (`data.loading.ring`)."""
    return workers * blocks_per_worker(prefetch) * window_bytes


def fit_validation(host: Host, window_bytes: int, workers: int) -> tuple[int, Host]:
    """The number of validation workers, and what the machine has left beside them.

    Validation windows (``window_bytes`` each) in /dev/shm may take up to half of the planned share. Elsewhere they are
    not counted. There are never more validation workers than training has ``workers``.
    """
    count = min(workers, VALIDATION_WORKERS)
    if host.shm_bytes is None:
        return count, host
    one = reserved_bytes(1, PREFETCH, window_bytes)
    count = min(count, int(host.shm_bytes * SHM_SHARE / 2) // one)
    return count, replace(host, shm_bytes=host.shm_bytes - count * one)


def _num_windows(workers: int, prefetch: int) -> int:
    """The windows that workers make ahead, and one more each, which may be in use and keeps its memory."""
    return max(workers * (prefetch + 1), 1)


def _fit_windows(host: Host, volume: Volume, workers: int, budget_bytes: int) -> tuple[int, int, str]:
    """Workers and prefetch whose windows fit into half of the budget and into /dev/shm, and why."""
    if workers == 0:
        return 0, 1, "no workers were asked for"
    why = f"{host.cores} cores"
    for count in range(workers, 0, -1):
        for prefetch in range(PREFETCH, 0, -1):
            windows = _num_windows(count, prefetch) * volume.window_bytes
            reserved = reserved_bytes(count, prefetch, volume.window_bytes)
            if windows + count * host.worker_bytes > budget_bytes // 2:
                why = f"windows are limited by half of the loader's {budget_bytes / GIB:.1f} GiB"
            elif host.shm_bytes is not None and reserved > int(host.shm_bytes * SHM_SHARE):
                why = f"windows are limited by /dev/shm, which has {host.shm_bytes / GIB:.2f} GiB free"
            else:
                return count, prefetch, why
    return 0, 1, f"no workers: {why}, too little for a worker's windows of {volume.window_bytes / GIB:.2f} GiB each"


def _choose_cache(host: Host, volume: Volume, mode: CacheMode, left_bytes: int) -> tuple[Cache, int, str]:
    """The cache, its number of images, and why."""
    # /dev/shm reserves whole slots
    picture_bytes = volume.picture_bytes if host.shm_bytes is None else volume.slot_bytes
    decoded, files = (volume.num_images * size for size in (picture_bytes, volume.file_bytes))
    sizes = f"{decoded / GIB:.1f} GiB decoded, {files / GIB:.1f} GiB as files"
    place = "RAM" if host.shm_bytes is None else "RAM and /dev/shm"
    room = f"{left_bytes / GIB:.1f} GiB of {place} for them"
    if mode == "none":
        return "none", 0, "no cache was asked for"
    if mode == "ram" or (mode == "auto" and decoded <= left_bytes):
        images = min(volume.num_images, left_bytes // max(picture_bytes, 1))
        return ("ram", images, f"{images} of {volume.num_images} images fit ({sizes}; {room})") if images else (
            "none", 0, f"not one image fits into RAM ({room})"
        )  # fmt: skip
    if mode == "auto" and files <= left_bytes:
        return "files", volume.num_images, f"images fit as files only ({sizes}; {room})"
    on_disk = volume.num_images * volume.slot_bytes
    if on_disk + DISK_RESERVE_BYTES > host.disk_bytes:
        return "none", 0, f"neither RAM nor disk has room ({sizes}; {room}; {host.disk_bytes / GIB:.1f} GiB of disk)"
    if mode == "disk" or volume.size_ratio >= SLOW_DECODE_RATIO:
        return "disk", volume.num_images, f"decoded images fit on disk ({sizes}; {room})"
    return "none", 0, f"images do not fit ({sizes}; {room}), and decode as fast as a disk would deliver them"


def open_caches(
    dataset: TrainDataset, plan: LoadPlan, folder: Path, available_bytes: Callable[[], int] | None = None
) -> TrainDataset:
    """The same data set with the caches of a plan, for a loader that has not started its workers.

    Args:
        dataset: The training images.
        plan: From `plan_loading`.
        folder: Folder of a cache on disk, outside of the user's data set. The file is removed when the run ends.
        available_bytes: Returns the free RAM in bytes, in any process (a module's function); None never asks.

    Raises:
        OSError: If the disk has no room after all.
    """
    index, slot_bytes = dataset.source.index, 3 * dataset.source.image_size**2
    pools = PartnerPools(len(dataset), dataset.seed, plan.keeps_all_decoded)
    if plan.cache == "ram":
        pictures = DecodedCache(plan.cached_images, slot_bytes, None, available_bytes, plan.floor_bytes)
        return dataset.with_caches(pictures, pools=pools)
    if plan.cache == "disk":
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"decoded-{uuid4().hex}.bin"
        return dataset.with_caches(DecodedCache(plan.cached_images, slot_bytes, file), pools=pools)
    files = None
    if plan.cache == "files":
        paths = (Path(index.path(image)) for image in range(len(index)))
        sizes_bytes = np.fromiter((path.stat().st_size for path in paths), np.int64, len(index))
        files = FileCache(sizes_bytes, available_bytes, plan.floor_bytes)
    recent = RecentImages(pools, plan.recent_images, slot_bytes) if plan.recent_images else None
    return dataset.with_caches(recent, files, pools)


def most_workers(plan: LoadPlan, host: Host, volume: Volume, workers: int) -> int:
    """Return how many of ``workers`` have room beside the cache of a run under way.

    Args:
        plan: What the loader takes now.
        host: What is left beside it.
        volume: What is loaded.
        workers: Wanted number of worker processes.
    """
    recent_bytes = plan.recent_images * volume.slot_bytes
    given_back_bytes = plan.window_bytes + plan.workers * host.worker_bytes + recent_bytes
    shm_bytes = host.shm_bytes
    if shm_bytes is not None:
        shm_bytes += reserved_bytes(plan.workers, plan.prefetch, volume.window_bytes) + recent_bytes
    host = replace(host, ram_bytes=host.ram_bytes + given_back_bytes, shm_bytes=shm_bytes)
    return plan_loading(host, volume, "none", workers).workers
