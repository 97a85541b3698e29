"""DataLoaders: the same batches from any number of processes, and a data set that is only read."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import albumentations as A
import cv2
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from data.augmentation.augment import AugmentConfig
from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index
from data.loading.batch import Batch
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.loader import build_train_loader, build_validation_loader, prepare_worker


def make_train(index: ImageIndex) -> TrainDataset:
    return TrainDataset(index, 64, AugmentConfig(close_mosaic=0), 0, 10, [A.GaussNoise(p=0.5)])


def read(loader: DataLoader, epochs: int = 1) -> list[Batch]:
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.names == b.names
        for name in ("images", "boxes_xyxy_px", "classes", "image_index"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path} {path.stat().st_mtime_ns}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def test_build_train_loader__windows_of_an_epoch(index: ImageIndex) -> None:
    loader = build_train_loader(make_train(index), batch_size=3)
    assert len(loader) == 3
    batches = read(loader)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(name for batch in batches for name in batch.names) == [index.path(i) for i in range(7)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_build_train_loader__same_batches_for_any_number_of_workers(index: ImageIndex) -> None:
    dataset = make_train(index)
    expected = read(build_train_loader(dataset, 3), epochs=2)
    for num_workers in (2, 4):
        loader = build_train_loader(dataset, 3, num_workers)
        assert loader.persistent_workers
        assert_equal(read(loader, epochs=2), expected)


@pytest.mark.slow
def test_build_train_loader__same_batches_from_spawned_processes(index: ImageIndex) -> None:
    dataset = make_train(index)
    loader = build_train_loader(dataset, 3, 1)
    loader.multiprocessing_context = "spawn"
    assert_equal(read(loader), read(build_train_loader(dataset, 3)))


def test_build_train_loader__resumes_in_the_middle_of_an_epoch(index: ImageIndex) -> None:
    dataset = make_train(index)
    loader = build_train_loader(dataset, 3)
    loader.batch_sampler.set_epoch(4)
    straight = list(loader)
    assert_equal(list(build_train_loader(dataset, 3, epoch=4, start_window=1)), straight[1:])


def test_build_train_loader__devices_share_each_window(index: ImageIndex) -> None:
    dataset = make_train(index)
    whole = read(build_train_loader(dataset, 4))
    ranks = [read(build_train_loader(dataset, 4, num_replicas=2, rank=rank)) for rank in range(2)]
    for window, first, second in zip(whole, *ranks, strict=True):
        assert first.names + second.names == window.names
        assert torch.equal(torch.cat([first.images, second.images]), window.images)


def test_build_train_loader__a_killed_worker_is_an_error_of_the_next_windows(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would raise the error wherever the signal finds this process."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in a process without a loader so far
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(build_train_loader(make_train(index), batch_size=1, num_workers=1, prefetch=1))
    assert signal.getsignal(signal.SIGCHLD) is handler
    next(batches)
    (worker,) = batches._workers
    worker.kill()
    worker.join()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        list(batches)


def test_build_validation_loader__every_image_once_in_order(index: ImageIndex) -> None:
    loader = build_validation_loader(ValidationDataset(index, 64), batch_size=4)
    batches = list(loader)
    assert [name for batch in batches for name in batch.names] == [index.path(i) for i in range(7)]
    assert batches[1].geometry.original_size_B2.tolist() == [[30, 50], [64, 64], [70, 64]]
    ranks = [build_validation_loader(ValidationDataset(index, 64), 4, num_replicas=2, rank=rank) for rank in range(2)]
    names = [name for loader in ranks for batch in loader for name in batch.names]
    assert sorted(names) == [index.path(i) for i in range(7)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("rectangular", [False, True])
def test_loaders__a_device_without_an_image_gets_an_empty_batch(
    num_workers: int, rectangular: bool, index: ImageIndex
) -> None:
    """Windows of 3, 3 and 1 of 7 images on two devices, and validation batches of 16 on eight."""
    shares = {"num_replicas": 2, "rank": 1}
    *_, last = build_train_loader(make_train(index), 3, num_workers, **shares)
    validation = ValidationDataset(index, 64, rectangular)
    (only,) = build_validation_loader(validation, 16, num_workers, num_replicas=8, rank=7)
    for batch in (last, only):
        assert len(batch) == 0 and batch.images.shape[:2] == (0, 3) and batch.names == []
        assert batch.boxes_xyxy_px.shape == (0, 4) and batch.split(2) == []
        assert batch.classes.dtype == batch.image_index.dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 1])
def test_build_train_loader__too_many_broken_images_end_in_one_line(index: ImageIndex, num_workers: int) -> None:
    for image in (2, 3):
        Path(index.path(image)).write_bytes(b"no image")
    loader = build_train_loader(make_train(index), 7, num_workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert "not an image" in str(caught.value) and "Check the disk" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_build_validation_loader__shows_one_broken_image_as_gray(index: ImageIndex) -> None:
    num_boxes = [len(index.labels(image)[1]) for image in range(len(index))]
    Path(index.path(2)).write_bytes(b"no image")
    (window,) = build_validation_loader(ValidationDataset(index, 64), batch_size=len(index))
    assert window.images[2].unique().tolist() == [114]
    counts = window.image_index.bincount(minlength=len(index)).tolist()
    assert counts == [0 if image == 2 else count for image, count in enumerate(num_boxes)]


def test_loaders__leave_the_data_set_as_it_is(yaml_file: Path) -> None:
    before = tree_hash(yaml_file.parent)
    paths = [yaml_file.parent, *yaml_file.parent.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        index = build_index(read_dataset_yaml(yaml_file), "train")
        list(build_train_loader(make_train(index), 3))
        list(build_validation_loader(ValidationDataset(index, 64), 3))
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert tree_hash(yaml_file.parent) == before


def test_prepare_worker__uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cv2, "setNumThreads", lambda number: calls.append(("cv2", number)))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: calls.append(("torch", number)))
    prepare_worker()
    assert calls == [("cv2", 0), ("torch", 1)]


@pytest.mark.skipif(os.name == "nt", reason="shared memory of Linux")
@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only")
def test_prepare_worker__the_memory_of_a_picture_is_used_again() -> None:
    """Counts page faults of a process that makes and frees arrays as large as images."""
    program = """
import resource, sys
import numpy as np
from data.loading.loader import prepare_worker
if sys.argv[1] == "prepared":
    prepare_worker()
def make(n): return [np.full((n, 640, 3), 114, np.uint8) for n in (640, 500, 640)]
make(640)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for n in range(50): make(600 + n)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout)
        for how in ("prepared", "plain")
    ]
    assert faults[0] < 1000 < 10_000 < faults[1]  # 50 x 3 pictures are 45,000 pages


def test_image_index__pickles_for_spawned_workers(index: ImageIndex) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(index))
    assert copy.path(3) == index.path(3) and copy.labels(3)[0].tolist() == index.labels(3)[0].tolist()
