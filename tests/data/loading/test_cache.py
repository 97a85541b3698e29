"""Caches: they return what was put in, processes share them, and wrong content is never used."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from data.augmentation.augment import AugmentConfig
from data.indexing.index import ImageIndex
from data.loading.cache import DecodedCache, FileCache, RecentImages, SlotCache
from data.loading.dataset import TrainDataset
from data.loading.loader import build_train_loader
from data.loading.partners import POOL_SIZE, PartnerPools
from data.loading.sampler import SampleKey, epoch_order
from data.loading.shared import SharedBlock

SLOT_BYTES = 3 * 64**2


def picture_of(seed: int, height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_train(index: ImageIndex, cache: SlotCache | None = None, files: FileCache | None = None) -> TrainDataset:
    return TrainDataset(index, 64, AugmentConfig(close_mosaic=0), 0, 10).with_caches(cache, files)


def caches_of(index: ImageIndex, folder: Path) -> dict[str, TrainDataset]:
    sizes = np.array([Path(index.path(i)).stat().st_size for i in range(len(index))])
    return {
        "ram": make_train(index, DecodedCache(len(index), SLOT_BYTES)),
        "part": make_train(index, DecodedCache(3, SLOT_BYTES)),
        "disk": make_train(index, DecodedCache(len(index), SLOT_BYTES, folder / "cache.bin")),
        "recent": make_train(index, RecentImages(PartnerPools(len(index), 0), len(index), SLOT_BYTES)),
        "crowded": make_train(index, RecentImages(PartnerPools(len(index), 0), 2, SLOT_BYTES)),
        "files": make_train(index, files=FileCache(sizes)),
    }


def assert_same_windows(a: TrainDataset, b: TrainDataset) -> None:
    for epoch in range(3):
        keys = [SampleKey(epoch, image) for image in range(len(a))]
        left, right = a.__getitems__(keys), b.__getitems__(keys)
        assert torch.equal(left.images, right.images) and torch.equal(left.boxes_xyxy_px, right.boxes_xyxy_px)


@pytest.mark.parametrize("kind", ["ram", "part", "disk", "recent", "crowded", "files"])
def test_caches__change_no_sample(index: ImageIndex, tmp_path: Path, kind: str) -> None:
    assert_same_windows(caches_of(index, tmp_path)[kind], make_train(index))


@pytest.mark.parametrize(("kind", "expected"), [("ram", 7), ("part", 3), ("disk", 7)])
def test_caches__read_each_file_once(index: ImageIndex, tmp_path: Path, kind: str, expected: int) -> None:
    dataset = caches_of(index, tmp_path)[kind]
    for image in range(7):
        dataset.source.load(image)
    with mock.patch("data.loading.source.decode_image", side_effect=AssertionError("decoded again")):
        for image in range(expected):
            dataset.source.load(image)
    assert dataset.source.cache.num_pictures == expected


def test_file_cache__reads_each_file_once_and_only_as_it_was(index: ImageIndex, tmp_path: Path) -> None:
    dataset = caches_of(index, tmp_path)["files"]
    Path(index.path(4)).write_bytes(Path(index.path(0)).read_bytes())  # another size than before
    for image in range(7):
        dataset.source.load(image)
    with mock.patch("data.loading.cache.read_bytes", side_effect=AssertionError("read again")):
        for image in (0, 1, 2, 3, 5, 6):
            dataset.source.load(image)
        with pytest.raises(AssertionError, match="read again"):
            dataset.source.load(4)


def test_slot_cache__gives_what_was_put_in() -> None:
    cache = DecodedCache(5, SLOT_BYTES)
    assert cache.get(3) is None
    cache.put(3, picture_of(3), (400, 640))
    cache.put(4, picture_of(4, 64, 64), (64, 64))
    cache.put(1, picture_of(1, 80, 80), (80, 80))  # larger than a slot
    found = cache.get(3)
    assert np.array_equal(found.image, picture_of(3)) and found.original_hw == (400, 640)
    assert np.array_equal(cache.get(4).image, picture_of(4, 64, 64))
    assert cache.get(1) is None and cache.get(7) is None and cache.num_pictures == 2


def test_recent_images__decodes_each_file_about_once_an_epoch() -> None:
    """As the loader does: in the epoch's order, with partners from the pools."""
    num_images = 6 * POOL_SIZE + 11
    pools = PartnerPools(num_images, seed=5)
    cache = RecentImages(pools, 2 * POOL_SIZE, 27)
    rng, decoded = np.random.default_rng(0), 0
    for epoch in range(2):
        cache.begin(epoch)
        for image in epoch_order(num_images, 5, epoch):
            pool = pools.pool(image)
            for needed in (image, *pool[rng.integers(len(pool), size=3)]):
                if cache.get(needed) is None:
                    decoded += 1
                    cache.put(needed, np.full((3, 3, 3), needed % 256, np.uint8), (3, 3))
                assert (cache.get(needed).image == needed % 256).all()
    assert decoded == 2 * num_images


def test_is_intact__notices_an_overwritten_slot(index: ImageIndex) -> None:
    cache = RecentImages(PartnerPools(4, 0), 1, SLOT_BYTES)
    cache.begin(0)
    cache.put(0, picture_of(0), (40, 64))
    assert cache.get(0) is not None and cache.is_intact()
    cache.put(1, picture_of(1), (40, 64))
    assert not cache.is_intact() and cache.get(0) is None
    cache.begin(0)
    assert cache.is_intact()


def test_dataset__starts_again_when_a_slot_was_overwritten_meanwhile(index: ImageIndex) -> None:
    """Another worker overwrites the image while it is being read."""
    dataset = make_train(index, DecodedCache(7, SLOT_BYTES))
    expected = make_train(index)[SampleKey(0, 3)].image
    dataset[SampleKey(0, 3)]
    cache, get, calls = dataset.source.cache, dataset.source.cache.get, []

    def get_and_spoil(image: int) -> object:
        found = get(image)
        calls.append(image)
        if len(calls) == 1:
            assert found is not None
            found.image[:] = 0
            cache._rows[image, 0] = 99
        return found

    with mock.patch.object(cache, "get", get_and_spoil):
        assert torch.equal(dataset[SampleKey(0, 3)].image, expected)
    assert calls and dataset.source.cache is cache


class TestMemoryPressure:
    def test_stops_growing_below_the_floor_and_goes_on_above(self) -> None:
        room = [100]
        cache = DecodedCache(99, SLOT_BYTES, None, lambda: room[0], floor_bytes=80)
        for image in range(16):
            cache.put(image, picture_of(image), (1, 1))
        room[0] = 79
        for image in range(16, 40):
            cache.put(image, picture_of(image), (1, 1))
        assert cache.num_pictures == 16 and not cache.is_closed
        assert np.array_equal(cache.get(7).image, picture_of(7))
        room[0] = 80
        cache.put(50, picture_of(50), (1, 1))
        assert cache.num_pictures == 17

    def test_gives_everything_back_below_half_of_it(self) -> None:
        room = [100]
        cache = DecodedCache(99, SLOT_BYTES, None, lambda: room[0], floor_bytes=80)
        for image in range(16):
            cache.put(image, picture_of(image), (1, 1))
        cache.begin(0)
        view = cache.get(3).image
        room[0] = 39
        cache.put(20, picture_of(20), (1, 1))
        assert cache.is_closed and cache.num_pictures == 0 and cache.get(3) is None and not cache.is_intact()
        room[0] = 1000
        cache.put(20, picture_of(20), (1, 1))
        assert cache.num_pictures == 0
        assert not view.any()  # the pages went back to the system

    def test_a_full_cache_is_given_back_too(self, index: ImageIndex) -> None:
        """In the second epoch nothing new is put in, but the free memory is still checked."""
        room = [100]
        dataset = make_train(index, DecodedCache(7, SLOT_BYTES, None, lambda: room[0], floor_bytes=80))
        with mock.patch("data.loading.cache.LOOK_EVERY", 5):
            for image in range(7):
                dataset[SampleKey(0, image)]
            assert dataset.source.cache.num_pictures == 7
            room[0] = 39
            for image in range(7):
                sample = dataset[SampleKey(1, image)]
                assert torch.equal(sample.image, make_train(index)[SampleKey(1, image)].image)
        assert dataset.source.cache.is_closed and dataset.source.cache.num_pictures == 0

    def test_files_are_given_back_too(self, index: ImageIndex) -> None:
        sizes, room = np.array([Path(index.path(i)).stat().st_size for i in range(len(index))]), [100]
        files = FileCache(sizes, lambda: room[0], floor_bytes=80)
        with mock.patch("data.loading.cache.LOOK_EVERY", 5):
            for image in range(7):
                files.read(image, index.path(image))
            assert files._content.array.any()
            room[0] = 39
            for image in range(7):
                assert files.read(image, index.path(image)) == Path(index.path(image)).read_bytes()
        assert files.is_closed and not files._content.array.any()  # the pages went back to the system

    def test_samples_are_the_same(self, index: ImageIndex) -> None:
        room = iter([100, *[10] * 99])
        cache = DecodedCache(7, SLOT_BYTES, None, lambda: next(room), floor_bytes=80)
        with mock.patch("data.loading.cache.CHECK_EVERY", 3):
            assert_same_windows(make_train(index, cache), make_train(index))
        assert cache.is_closed


def _fill(cache: DecodedCache, images: list[int]) -> None:
    for image in images:
        cache.put(image, picture_of(image), (image, image))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_slot_cache__is_shared_between_processes(tmp_path: Path, method: str, on_disk: bool) -> None:
    context = multiprocessing.get_context(method)
    with mock.patch("multiprocessing.get_start_method", lambda: method):
        cache = DecodedCache(9, SLOT_BYTES, tmp_path / "cache.bin" if on_disk else None)
    processes = [context.Process(target=_fill, args=(cache, images)) for images in ([1, 2], [5])]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert cache.num_pictures == 3
    for image in (1, 2, 5):
        assert np.array_equal(cache.get(image).image, picture_of(image))


def test_shared_block__on_disk_goes_with_its_owner(tmp_path: Path) -> None:
    with mock.patch("multiprocessing.get_start_method", lambda: "spawn"):
        block = SharedBlock(5000, tmp_path / "cache.bin")
    copy = pickle.loads(pickle.dumps(block))
    copy.array[4999] = 7
    assert block.array[4999] == 7
    del copy
    assert (tmp_path / "cache.bin").exists()
    del block
    assert not (tmp_path / "cache.bin").exists()


def test_shared_block__on_disk_leaves_nothing_behind_even_if_the_run_is_killed(tmp_path: Path) -> None:
    block = SharedBlock(5000, tmp_path / "cache.bin")
    assert block.array.size == 5000 and not block.array.any()
    assert list(tmp_path.iterdir()) == []  # it has no name any more


def test_shared_block__without_room_in_shared_memory_says_so() -> None:
    with (
        mock.patch("multiprocessing.get_start_method", lambda: "spawn"),
        pytest.raises(OSError, match=r"no room for \d+ MiB that processes share: '/dev/shm'"),
    ):
        SharedBlock(2**50)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only there is the place taken at once")
def test_shared_block__on_disk_takes_its_place_at_once(tmp_path: Path) -> None:
    """A write to a page without room on the disk would end the process with SIGBUS."""
    with pytest.raises(OSError) as caught:
        SharedBlock(shutil.disk_usage(tmp_path).total + 2**30, tmp_path / "cache.bin")
    assert caught.value.filename == str(tmp_path / "cache.bin") and list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_caches__change_no_batch_of_any_number_of_workers(index: ImageIndex, tmp_path: Path) -> None:
    expected = list(build_train_loader(make_train(index), 3))
    for kind in ("ram", "crowded"):
        dataset = caches_of(index, tmp_path)[kind]
        for num_workers in (2, 4):
            for a, b in zip(build_train_loader(dataset, 3, num_workers), expected, strict=True):
                assert torch.equal(a.images, b.images) and a.names == b.names
        assert dataset.source.cache.num_pictures == (7 if kind == "ram" else 2)  # filled by the workers
