"""Mosaic partners: evenly spread, and the same in every process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.stats import chisquare

from data.loading.partners import POOL_SIZE, PartnerPools
from data.loading.sampler import epoch_order


def pools_of(num_images: int, epoch: int = 0, seed: int = 0) -> PartnerPools:
    pools = PartnerPools(num_images, seed)
    pools.set_epoch(epoch)
    return pools


@pytest.mark.parametrize("num_images", [1, 5, POOL_SIZE, POOL_SIZE + 1, 5 * POOL_SIZE - 1, 5 * POOL_SIZE])
def test_pool__parts_the_epoch(num_images: int) -> None:
    pools = pools_of(num_images)
    found = {tuple(pools.pool(image)) for image in range(num_images)}
    assert sorted(image for pool in found for image in pool) == list(range(num_images))
    assert all(image in pools.pool(image) for image in range(num_images))
    assert all(POOL_SIZE <= len(pool) < 2 * POOL_SIZE for pool in found) or num_images < POOL_SIZE


def test_pool__is_a_stretch_of_the_epochs_order() -> None:
    order = epoch_order(300, seed=7, epoch=4)
    pools = pools_of(300, epoch=4, seed=7)
    assert pools.pool(order[10]).tolist() == order[:64].tolist()
    assert pools.pool(order[299]).tolist() == order[192:].tolist()
    assert [pools.position(image) for image in order[:5]] == [0, 1, 2, 3, 4]


def test_pool__of_a_whole_data_set_has_all_images() -> None:
    pools = pickle.loads(pickle.dumps(PartnerPools(300, seed=7, is_whole=True)))  # as a worker gets it
    pools.set_epoch(4)
    assert all(pools.pool(image).tolist() == epoch_order(300, seed=7, epoch=4).tolist() for image in (0, 150, 299))


def test_partners__of_an_epoch_are_evenly_spread() -> None:
    """Every image is a partner three times an epoch on average, spread as evenly as chance."""
    num_images = 1000
    pools = pools_of(num_images)
    rng = np.random.default_rng(0)
    counts = np.zeros(num_images)
    for image in range(num_images):
        pool = pools.pool(image)
        np.add.at(counts, pool[rng.integers(len(pool), size=3)], 1)
    assert counts.sum() == 3 * num_images
    assert 0.001 < chisquare(counts).pvalue < 0.999


def test_partners__over_the_epochs_every_pair_is_equally_likely() -> None:
    num_images, met = 256, np.zeros(256)
    pools = PartnerPools(num_images, seed=1)
    for epoch in range(400):
        pools.set_epoch(epoch)
        met[pools.pool(17)] += 1
    others = np.delete(met, 17)
    assert met[17] == 400
    expected = 400 * 63 / 255
    assert abs(others.mean() - expected) < 1e-9
    assert np.abs(others - expected).max() < 4.5 * np.sqrt(expected * (1 - 63 / 255))  # sigmas of a binomial


def test_pools__pickle_without_the_epochs_arrays() -> None:
    import pickle

    pools = pools_of(100_000, epoch=3)
    content = pickle.dumps(pools)
    assert len(content) < 1000
    copy = pickle.loads(content)
    copy.set_epoch(3)
    assert copy.pool(5).tolist() == pools.pool(5).tolist()
