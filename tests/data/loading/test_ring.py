"""Windows in reused blocks: no tensor in use ever changes, and no process waits."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from data.augmentation.augment import AugmentConfig
from data.indexing.index import ImageIndex
from data.loading.batch import Batch
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.loader import build_train_loader, build_validation_loader
from data.loading.ring import WindowRing


def make_train(index: ImageIndex) -> TrainDataset:
    return TrainDataset(index, 64, AugmentConfig(close_mosaic=0), 0, 30)


def taken(ring: WindowRing) -> list[int]:
    return ring._is_taken.array.tolist()


def test_open__block_is_free_when_the_last_view_is_gone() -> None:
    ring = WindowRing(1, 2, 2 * 3 * 8 * 8)
    made = ring.empty(2, (8, 8))
    made.copy_(torch.arange(made.numel()).view(made.shape) % 251)
    assert taken(ring) == [1, 0]
    images = ring.open(0, (2, 3, 8, 8))
    part = images.float(), images[1:].flatten()[5:9]
    assert torch.equal(images, made)
    del images
    assert taken(ring) == [1, 0]  # a part of a part of it is still looked at
    assert part[1].tolist() == [(3 * 64 + 5 + i) % 251 for i in range(4)]
    del part
    assert taken(ring) == [0, 0]


def test_empty__takes_other_memory_when_there_is_no_free_block() -> None:
    ring = WindowRing(1, 2, 2 * 3 * 8 * 8)
    windows = [ring.empty(2, (8, 8)) for _ in range(3)]
    assert len({window.data_ptr() for window in windows}) == 3 and taken(ring) == [1, 1]
    ring = WindowRing(1, 2, 2 * 3 * 8 * 8)
    ring.empty(200, (8, 8))  # larger than a block
    assert taken(ring) == [0, 0]


def test_loader__uses_blocks_again(index: ImageIndex) -> None:
    loader = build_train_loader(make_train(index), 3, 1)
    addresses, num_windows = set(), 0
    for epoch in range(6):
        loader.batch_sampler.set_epoch(epoch)
        for window in loader:
            addresses.add(window.images.data_ptr())
            num_windows += 1
    del window
    assert num_windows == 18 and len(addresses) <= 4  # two windows ahead and those in use
    assert taken(loader.dataset.ring) == [0] * 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_loader__whoever_keeps_a_part_of_a_window_sees_no_change(index: ImageIndex) -> None:
    """Keeps one image of every window of six epochs, far more than there are blocks."""
    loader, plain = (build_train_loader(make_train(index), 3, num_workers) for num_workers in (3, 0))
    kept, expected = [], []
    for epoch in range(6):
        for some_loader, images in ((loader, kept), (plain, expected)):
            some_loader.batch_sampler.set_epoch(epoch)
            images += [window.split(1)[-1].images for window in some_loader]
    assert len(kept) == 18
    for image, same in zip(kept, expected, strict=True):
        assert torch.equal(image, same)
    assert sum(taken(loader.dataset.ring)) == 12


def test_loader__goes_on_after_an_epoch_that_was_left_early(index: ImageIndex) -> None:
    loader, plain = (build_train_loader(make_train(index), 2, num_workers) for num_workers in (2, 0))
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        next(iter(loader))
    loader.batch_sampler.set_epoch(4)
    plain.batch_sampler.set_epoch(4)
    for window, same in zip(loader, plain, strict=True):
        assert torch.equal(window.images, same.images) and window.names == same.names
    del window
    assert sum(taken(loader.dataset.ring)) == 0


def test_validation_loader__windows_lie_in_blocks(index: ImageIndex) -> None:
    """Rectangles are smaller than the block."""
    dataset = ValidationDataset(index, 64, rectangular=True)
    loader, plain = (build_validation_loader(dataset, 2, num_workers) for num_workers in (1, 0))
    pairs: list[tuple[Batch, Batch]] = list(zip(loader, plain, strict=True))
    assert all(torch.equal(window.images, same.images) for window, same in pairs)
    assert taken(loader.dataset.ring) == [1] * 4 and len({window.images.shape for window, _ in pairs}) > 1


def test_loader__of_spawned_workers_shares_blocks(index: ImageIndex) -> None:
    expected = [window.images for window in build_train_loader(make_train(index), 3)]
    with mock.patch("multiprocessing.get_start_method", lambda: "spawn"):
        loader = build_train_loader(make_train(index), 3, 1)
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    windows = list(loader)
    assert all(torch.equal(window.images, same) for window, same in zip(windows, expected, strict=True))
    assert sum(taken(loader.dataset.ring)) == 3


def test_loader__that_is_still_there_does_not_keep_its_process_from_ending(yaml_file: Path) -> None:
    """Workers ignore SIGTERM, which is how Python asks them to end."""
    program = """
import sys
from pathlib import Path
from data.augmentation.augment import AugmentConfig
from data.loading.dataset import TrainDataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from data.loading.loader import build_train_loader
index = build_index(read_dataset_yaml(Path(sys.argv[1])), "train")
loader = build_train_loader(TrainDataset(index, 64, AugmentConfig(), 0, 30), 3, 2)
windows = iter(loader)
next(windows)
print("leaving")
"""
    command = [sys.executable, "-c", program, str(yaml_file)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "leaving\n"
