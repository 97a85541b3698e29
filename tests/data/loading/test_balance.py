"""Repeat factors: the formula of LVIS, weights by name, and epochs that show each image as often as its share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import ImageIndex, build_index
from data.loading.balance import BalanceConfig, class_repeats, image_repeats
from data.loading.sampler import SampleKey, WindowSampler, draw_repeats

NAMES = ("common", "rare", "unseen")
REPEATS = st.lists(st.floats(0.05, 9.0), min_size=1, max_size=60).map(np.array)


@pytest.fixture
def long_tail(dataset_writer: object) -> ImageIndex:
    """Eight images: ``common`` in seven (twice in the first), ``rare`` in one of them, one without objects."""
    common = "0 0.5 0.5 0.2 0.2\n"
    texts = [common + "0 0.2 0.2 0.1 0.1\n1 0.7 0.7 0.1 0.1\n", *[common] * 6, ""]
    return build_index(read_dataset_yaml(dataset_writer([(16, 16)] * 8, texts, NAMES)), "train")


def test_class_repeats__is_the_formula_of_lvis(long_tail: ImageIndex) -> None:
    expected = [1.0, math.sqrt(0.5 / (1 / 8)), math.sqrt(0.5 / (1 / 8))]  # a class of no image counts as of one
    np.testing.assert_allclose(class_repeats(long_tail, 3, 0.5), expected)
    assert class_repeats(long_tail, 3, 0.1).tolist() == [1, 1, 1]


def test_image_repeats__an_image_takes_its_largest_factor(long_tail: ImageIndex) -> None:
    assert image_repeats(long_tail, NAMES, BalanceConfig(0.5)).tolist() == [2, 1, 1, 1, 1, 1, 1, 1]
    weights = BalanceConfig(class_weights={"common": 0.5, "rare": 3.0})
    assert image_repeats(long_tail, NAMES, weights).tolist() == [3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1]
    assert image_repeats(long_tail, NAMES, BalanceConfig()) is None


def test_balance_config__rejects(long_tail: ImageIndex) -> None:
    with pytest.raises(DataError, match=r"data\.balance\.repeat_threshold: 2: not a share of the images\. Give 0 to 1"):
        BalanceConfig(2)
    with pytest.raises(DataError, match=r"data\.balance\.class_weights\.a: 0: out of range\. Give above 0 to 1000"):
        BalanceConfig(class_weights={"a": 0})
    with pytest.raises(DataError, match=r"class_weights: 'rear': no such class\. The classes are common, rare, unseen"):
        image_repeats(long_tail, NAMES, BalanceConfig(class_weights={"rear": 2.0}))


@settings(deadline=None, max_examples=60)
@given(REPEATS, st.integers(0, 9))
def test_draw_repeats__gives_each_image_its_share_to_within_one(repeats: np.ndarray, seed: int) -> None:
    places = math.ceil(repeats.sum())
    images, copies = draw_repeats(repeats, places, np.random.default_rng(seed))
    assert len(images) == len(copies) == places
    counts = np.bincount(images, minlength=len(repeats))
    assert (np.abs(counts - repeats * places / repeats.sum()) < 1 + 1e-9).all()
    assert len(set(zip(images.tolist(), copies.tolist(), strict=True))) == places  # never the same sample twice
    assert (copies < counts[images]).all()


def test_draw_repeats__fractions_are_met_on_average() -> None:
    repeats = np.array([1.0, 2.3, 0.25, 1.45])
    counts = sum(
        np.bincount(draw_repeats(repeats, 5, np.random.default_rng(seed))[0], minlength=4) for seed in range(4000)
    )
    np.testing.assert_allclose(counts / 4000, repeats, atol=0.03)  # at most 0.5 / sqrt(4000) = 0.008 is one sigma


def test_window_sampler__repeats_keep_the_size_of_windows_and_the_length_of_epochs() -> None:
    repeats = np.array([1.0] * 10 + [3.5])
    epochs = []
    for epoch in range(30):
        sampler = WindowSampler(11, 4, seed=5, shuffle=True, epoch=epoch, repeats=repeats)
        windows = list(sampler)
        assert [len(window) for window in windows] == [4, 4, 4, 2] and len(sampler) == 4
        assert len({key for window in windows for key in window}) == 14
        epochs.append([key for window in windows for key in window])
    again = WindowSampler(11, 4, seed=5, shuffle=True, epoch=7, repeats=repeats)
    assert [key for window in again for key in window] == epochs[7]
    assert {sum(key.index == 10 for key in epoch) for epoch in epochs} == {3, 4}
    assert all({key.index for key in epoch} == set(range(11)) for epoch in epochs)  # none is left out


def test_window_sampler__repeats_are_shared_between_devices() -> None:
    repeats = np.array([1.0, 2.5, 1.0, 4.0])
    whole = [key for window in WindowSampler(4, 3, 1, True, repeats=repeats) for key in window]
    ranks = [list(WindowSampler(4, 3, 1, True, num_replicas=2, rank=rank, repeats=repeats)) for rank in range(2)]
    assert [key for step in zip(*ranks, strict=True) for share in step for key in share] == whole


def test_sample_key__of_a_first_copy_is_what_it_was_without_repeats() -> None:
    assert SampleKey(3, 4) == SampleKey(3, 4, 0)
    same = [np.random.SeedSequence(entropy).generate_state(4).tolist() for entropy in ([7, 3, 4], [7, 3, 4, 0])]
    assert same[0] == same[1]  # so a generator seeded with the whole key changes no existing run


def test_image_repeats__finds_the_rare_images_of_a_large_index() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, 500_000)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    classes = rng.integers(0, 3, offsets[-1]).astype(np.int32)
    empty = np.empty(0, np.uint8)
    index = ImageIndex(empty, np.zeros(500_001, np.int64), np.empty((0, 4)), classes, offsets, np.empty((0, 2)))
    repeats = image_repeats(index, NAMES, BalanceConfig(class_weights={"rare": 2.0}))
    first = np.flatnonzero(classes == 1)[0]
    assert repeats[np.searchsorted(offsets, first, side="right") - 1] == 2.0
    assert repeats[counts == 0].max() == 1.0
