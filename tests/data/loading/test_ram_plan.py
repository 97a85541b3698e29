"""The plan of the loader's RAM: it fits, it gives reasons, and the loader takes no more."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augmentation.augment import AugmentConfig
from data.indexing.index import ImageIndex
from data.loading.cache import DecodedCache, RecentImages
from data.loading.dataset import TrainDataset
from data.loading.loader import build_train_loader
from data.loading.ram_plan import (
    DISK_RESERVE_BYTES,
    GIB,
    MAX_WORKERS,
    RAM_SHARE,
    SHM_SHARE,
    WORKER_BYTES,
    Host,
    Volume,
    fit_validation,
    measure_volume,
    most_workers,
    open_caches,
    plan_loading,
    reserved_bytes,
)

FPIC = Volume(6260, 640, 32, 32, picture_bytes=3 * 640 * 640, file_bytes=70_000)
DESKTOP = Host(ram_bytes=24 * GIB, cores=16, shm_bytes=12 * GIB, disk_bytes=500 * GIB)


def test_plan__desktop_keeps_the_decoded_images() -> None:
    plan = plan_loading(DESKTOP, FPIC)
    assert (plan.cache, plan.cached_images, plan.recent_images) == ("ram", 6260, 0)
    assert (plan.workers, plan.prefetch) == (MAX_WORKERS, 2)
    assert plan.cache_bytes == 6260 * 3 * 640 * 640
    assert plan.window_bytes == 24 * 32 * 3 * 640 * 640  # two ahead and one in use, of eight workers
    text = plan.describe()
    assert "\n" not in text and "6260 of 6260 images fit (7.2 GiB decoded, 0.4 GiB as files; " in text


def test_plan__falls_back_step_by_step() -> None:
    chosen = [plan_loading(replace(DESKTOP, ram_bytes=ram * GIB), FPIC, workers=2).cache for ram in (24, 12, 4, 1)]
    assert chosen == ["ram", "files", "files", "none"]
    large = replace(FPIC, num_images=200_000, file_bytes=4_000_000, size_ratio=6.0)
    assert plan_loading(DESKTOP, large).cache == "disk"
    assert "disk" in plan_loading(DESKTOP, large).reason
    assert plan_loading(replace(DESKTOP, disk_bytes=10 * GIB), large).cache == "none"
    assert plan_loading(DESKTOP, replace(large, size_ratio=1.0)).cache == "none"  # decodes as fast as a disk delivers


def test_plan__modes_are_obeyed() -> None:
    assert plan_loading(DESKTOP, FPIC, cache="none").cache == "none"
    assert plan_loading(DESKTOP, FPIC, cache="disk").cache == "disk"
    part = plan_loading(replace(DESKTOP, ram_bytes=8 * GIB), FPIC, cache="ram", workers=2)
    assert part.cache == "ram" and 500 < part.cached_images < 6260
    assert f"{part.cached_images} of 6260 images fit" in part.reason
    assert plan_loading(DESKTOP, FPIC, workers=5).workers == 5
    assert plan_loading(DESKTOP, FPIC, workers=0).workers == 0
    assert plan_loading(replace(DESKTOP, cores=1), FPIC).workers == 1


def test_plan__small_shared_memory_limits_the_windows() -> None:
    """Docker gives 64 MiB: the three windows that a worker reserves at least fit with 12 images, not with 16."""
    docker = replace(DESKTOP, shm_bytes=64 * 2**20)
    plan = plan_loading(docker, replace(FPIC, batch_size=12, window_images=12))
    assert plan.workers == 1 and plan.prefetch == 1
    assert "windows are limited by /dev/shm, which has 0.06 GiB free" in plan.reason
    assert plan_loading(docker, replace(FPIC, batch_size=16, window_images=16)).workers == 0
    assert "no workers" in plan_loading(docker, FPIC).reason


def test_plan__small_shared_memory_limits_the_caches() -> None:
    """Where workers are not forked, caches lie in /dev/shm, which is small in a container."""
    small = replace(DESKTOP, shm_bytes=4 * GIB)
    assert plan_loading(small, FPIC).cache == "files"
    part = plan_loading(small, FPIC, cache="ram")
    assert 0 < part.window_bytes + part.cache_bytes <= SHM_SHARE * 4 * GIB and part.cached_images > 1000
    docker = plan_loading(replace(DESKTOP, shm_bytes=64 * 2**20), FPIC)
    assert docker.cache == "none" and "0.0 GiB of RAM and /dev/shm for them" in docker.reason


def test_fit_validation__leaves_half_of_shared_memory_to_training() -> None:
    window = 16 * 3 * 640**2
    assert fit_validation(replace(DESKTOP, shm_bytes=None), window, 4) == (2, replace(DESKTOP, shm_bytes=None))
    assert fit_validation(DESKTOP, window, 1) == (1, replace(DESKTOP, shm_bytes=12 * GIB - 4 * window))
    small = replace(DESKTOP, shm_bytes=12 * window)
    assert fit_validation(small, window, 4) == (1, replace(small, shm_bytes=8 * window))
    assert fit_validation(replace(small, shm_bytes=window), window, 4)[0] == 0


@settings(deadline=None, max_examples=300)
@given(
    ram=st.integers(2**28, 2**38),
    shm=st.one_of(st.none(), st.integers(0, 2**36)),
    cores=st.integers(1, 128),
    disk=st.integers(0, 2**41),
    images=st.integers(1, 2_000_000),
    size=st.sampled_from([64, 320, 640, 1280]),
    batch=st.integers(1, 256),
    shape=st.floats(0.01, 1),
    file=st.integers(100, 10_000_000),
    cache=st.sampled_from(["none", "ram", "disk", "auto"]),
    workers=st.one_of(st.just("auto"), st.integers(0, 40)),
)
def test_plan__never_takes_more_than_there_is(
    ram: int,
    shm: int | None,
    cores: int,
    disk: int,
    images: int,
    size: int,
    batch: int,
    shape: float,
    file: int,
    cache: str,
    workers: int | str,
) -> None:
    host = Host(ram, cores, shm, disk)
    volume = Volume(images, size, batch, batch, max(int(3 * size * size * shape), 1), file, 3.0)
    plan = plan_loading(host, volume, cache, workers)
    assert 0 <= plan.cached_images <= images and plan.prefetch >= 1 and plan.recent_images >= 0
    assert plan.ram_bytes == plan.window_bytes + plan.cache_bytes + plan.workers * (150 * 2**20)
    if shm is not None:
        slots = plan.recent_images + (plan.cached_images if plan.cache == "ram" else 0)
        reserved = reserved_bytes(plan.workers, plan.prefetch, volume.window_bytes) + slots * volume.slot_bytes
        assert reserved + (images * file if plan.cache == "files" else 0) <= shm * SHM_SHARE
    if plan.workers:
        assert plan.ram_bytes <= ram * RAM_SHARE
        assert shm is None or plan.window_bytes + plan.cache_bytes <= shm * SHM_SHARE
    else:
        assert plan.cache_bytes <= ram * RAM_SHARE  # the one window in use is needed in any case
    assert shm is None or plan.cache_bytes <= shm * SHM_SHARE
    if plan.cache == "disk":
        assert images * volume.slot_bytes + DISK_RESERVE_BYTES <= disk


def test_measure_volume__of_some_images(index: ImageIndex) -> None:
    volume = measure_volume(index, 64, 6, num_replicas=4)
    ratios = [1, 48 / 64, 40 / 64, 100 / 128, 30 / 50, 1, 64 / 70]
    assert volume.picture_bytes == int(np.mean(ratios) * 3 * 64 * 64)
    assert volume.size_ratio == pytest.approx(np.mean([64, 64, 64, 128, 50, 64, 70]) / 64)
    assert volume.file_bytes == int(np.mean([Path(index.path(i)).stat().st_size for i in range(7)]))
    assert (volume.num_images, volume.batch_size, volume.window_images) == (7, 6, 2)
    Path(index.path(2)).write_bytes(b"no image")
    assert measure_volume(index, 64, 6).picture_bytes > 0


def test_most_workers__leaves_room_for_the_cache_and_the_windows() -> None:
    plan = plan_loading(DESKTOP, FPIC, workers=4)
    left = replace(DESKTOP, ram_bytes=DESKTOP.ram_bytes - plan.ram_bytes, shm_bytes=DESKTOP.shm_bytes)
    assert most_workers(plan, left, FPIC, 6) == 6
    assert most_workers(plan, replace(left, ram_bytes=0), FPIC, 6) < 6


def test_plan__counts_all_libraries_of_a_worker_that_is_not_forked() -> None:
    """Such a worker has at least 330 MiB of private memory, measured at 640 px."""
    forked, spawned = (plan_loading(replace(DESKTOP, is_forked=is_forked), FPIC) for is_forked in (True, False))
    assert spawned.workers == forked.workers
    assert spawned.ram_bytes - forked.ram_bytes == forked.workers * (600 - 150) * 2**20
    small = replace(DESKTOP, is_forked=False, ram_bytes=5 * GIB)
    few = plan_loading(small, replace(FPIC, batch_size=1, window_images=1))
    assert few.workers == 2 and few.ram_bytes <= 3 * GIB


def test_most_workers__counts_what_the_loader_holds_as_its_own() -> None:
    """Without free memory the loader can keep or lower its number of workers, but not raise it."""
    plan = plan_loading(DESKTOP, FPIC, "none", 8)
    full = Host(ram_bytes=0, cores=16, shm_bytes=0)
    for without_shm in (full, replace(full, shm_bytes=None)):
        assert 0 < most_workers(plan, without_shm, FPIC, 16) <= 8
        assert 0 < most_workers(plan, without_shm, FPIC, 2) <= 2


def test_plan__under_pressure_takes_fewer_windows_then_fewer_workers() -> None:
    """The plans for less and less RAM, down to nothing."""
    plan = plan_loading(DESKTOP, FPIC, "none", 4)
    one_window = plan.window_bytes // 12  # four workers: two ahead and one in use each
    found = []
    for room in (12, 9, 5, 2, 1):  # windows for which there is room, in half of the loader's share
        ram = int(2 * (room * one_window + 4 * WORKER_BYTES) / RAM_SHARE) + 1
        short = plan_loading(replace(DESKTOP, ram_bytes=ram), FPIC, "auto", 4)
        found.append((short.workers, short.prefetch))
        assert short.window_bytes <= max(room, 1) * one_window + 4 * WORKER_BYTES
    assert found[:2] == [(4, 2), (4, 1)] and found[-1][0] < 4
    assert [workers for workers, _ in found] == sorted((workers for workers, _ in found), reverse=True)


def make_train(index: ImageIndex, image_size: int = 64) -> TrainDataset:
    return TrainDataset(index, image_size, AugmentConfig(close_mosaic=0), 0, 10)


def test_open_caches__are_those_of_the_plan(index: ImageIndex, tmp_path: Path) -> None:
    host = Host(ram_bytes=8 * GIB, cores=4, disk_bytes=500 * GIB)
    dataset = make_train(index)
    volume = measure_volume(index, 64, 3)
    for mode, kind in (("ram", DecodedCache), ("disk", DecodedCache), ("none", RecentImages)):
        dataset = open_caches(dataset, plan_loading(host, volume, mode, 1), tmp_path / "cache")
        assert type(dataset.source.cache) is kind
        assert len(list(build_train_loader(dataset, 3))) == 3
        has_name = mode == "disk" and multiprocessing.get_start_method() != "fork"  # see `data.loading.shared`
        assert len(list((tmp_path / "cache").glob("*.bin"))) == has_name
    dataset = open_caches(dataset, replace(plan_loading(host, volume, "none"), cache="files"), tmp_path)
    assert dataset.source.files is not None and len(list(build_train_loader(dataset, 3))) == 3


def test_partners__come_from_all_images_where_all_are_kept_decoded(tmp_path: Path) -> None:
    volume = Volume(300, 64, 4, 4, picture_bytes=3 * 64 * 64, file_bytes=2_000)
    index = ImageIndex(np.empty(0, np.uint8), np.zeros(301, np.int64), *[np.empty(0)] * 4)
    for ram_bytes, mode, is_whole in ((8 * GIB, "ram", True), (8 * GIB, "none", False), (4 * 2**20, "ram", False)):
        plan = plan_loading(Host(ram_bytes, cores=1), volume, mode, 0)
        dataset = make_train(index)
        dataset = open_caches(dataset, plan, tmp_path)
        dataset.pools.set_epoch(0)
        assert (len(dataset.pools.pool(7)) == 300) is is_whole, plan.describe()
        assert ("partners from the whole data set" in plan.describe()) is is_whole


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' memory statistics")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("mode", ["ram", "none"])
def test_workers__memory_stays_flat(dataset_writer: object, tmp_path: Path, mode: str) -> None:
    """Eight workers, five epochs: no process grows over the last three, and all share one cache."""
    from data.formats.dataset_yaml import read_dataset_yaml
    from data.indexing.index import build_index

    file = dataset_writer([(256, 256)] * 60, ["0 0.5 0.5 0.5 0.5\n"] * 60)
    dataset = make_train(build_index(read_dataset_yaml(file), "train"), 256)
    host = Host(ram_bytes=8 * GIB, cores=4, disk_bytes=500 * GIB)
    plan = plan_loading(host, measure_volume(dataset.source.index, 256, 6), mode, 8)
    dataset = open_caches(dataset, plan, tmp_path)
    loader = build_train_loader(dataset, 6, 8)
    others = set(psutil.Process().children(recursive=True))
    private, shared = [], []
    for epoch in range(5):
        loader.batch_sampler.set_epoch(epoch)
        for _ in loader:
            pass
        children = set(psutil.Process().children(recursive=True)) - others
        workers = [child for child in children if _is_worker(child)]
        assert len(workers) == 8
        private.append([_private_bytes(pid) for pid in sorted(worker.pid for worker in workers)])
        shared.append(dataset.source.cache.num_pictures)
    growth = np.array(private[-1]) - private[1]
    assert growth.max() < 4 * 2**20  # 3 epochs of 60 pictures of 192 KiB: 36 MB if they were kept
    assert shared[-1] == 60


def _is_worker(process: psutil.Process) -> bool:
    return "resource_tracker" not in " ".join(process.cmdline())


def _private_bytes(pid: int) -> int:
    """Memory of a process that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
