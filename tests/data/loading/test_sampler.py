"""Windows: complete, equal in number over the processes, repeatable, resumable."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import DataLoader

from data.loading.sampler import EpochOrder, SampleKey, WindowSampler


def windows(sampler: WindowSampler) -> list[list[int]]:
    return [[key.index for key in window] for window in sampler]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 8), st.booleans())
def test_window_sampler__every_image_once_and_every_rank_in_step(
    num_images: int, batch_size: int, num_replicas: int, shuffle: bool
) -> None:
    ranks = [
        windows(WindowSampler(num_images, batch_size, 7, shuffle, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    whole = windows(WindowSampler(num_images, batch_size, 7, shuffle))
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) == len(whole) == -(-num_images // batch_size)
    together = [[image for share in step for image in share] for step in zip(*ranks, strict=True)]
    assert sorted(chain(*together)) == list(range(num_images))
    assert together == whole  # the same steps, whatever the number of processes
    for shares in zip(*ranks, strict=True):
        sizes = [len(share) for share in shares]
        assert sizes[0] >= 1 and max(sizes) - min(sizes) <= 1
    assert all(len(step) == batch_size for step in together[:-1])


def test_window_sampler__a_small_last_window_leaves_shares_empty() -> None:
    samplers = [WindowSampler(17, 8, 0, False, num_replicas=4, rank=rank) for rank in range(4)]
    assert sorted(windows(sampler)[2] for sampler in samplers) == [[], [], [], [16]]
    assert windows(samplers[0])[2] == [16]  # the process that writes and draws


def test_window_sampler__without_shuffling_keeps_the_order() -> None:
    assert windows(WindowSampler(5, 2, 0, False)) == [[0, 1], [2, 3], [4]]


def test_window_sampler__order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return windows(WindowSampler(50, 8, seed, True, epoch=epoch))

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3) and order(1, 0) != order(0, 1)
    sampler = WindowSampler(50, 8, 1, True)
    sampler.set_epoch(3)
    assert windows(sampler) == order(1, 3)
    assert {key.epoch for window in sampler for key in window} == {3}


def test_epoch_order__positions_are_uniform() -> None:
    order = EpochOrder(4, seed=0, shuffle=True)
    counts = [[0] * 4 for _ in range(4)]
    for epoch in range(400):
        order.set_epoch(epoch)
        for position, key in enumerate(order):
            counts[position][key.index] += 1
    assert all(60 < count < 140 for row in counts for count in row)  # 100 expected, 8.7 is one sigma


def test_window_sampler__start_window_skips_in_its_own_epoch_only() -> None:
    whole, resumed = (
        WindowSampler(20, 4, 0, True, epoch=2),
        WindowSampler(20, 4, 0, True, epoch=2, start_window=3),
    )
    assert windows(resumed) == windows(whole)[3:]
    assert windows(resumed) == windows(whole)[3:]  # iterating again does not change it
    assert len(resumed) == len(whole) == 5
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert windows(resumed) == windows(whole)


def test_window_sampler__lightning_sets_the_epoch_through_the_loader() -> None:
    loader = DataLoader(range(10), batch_sampler=WindowSampler(10, 4, 0, True), collate_fn=list)
    _set_sampler_epoch(loader, 5)
    assert {key.epoch for window in loader.batch_sampler for key in window} == {5}
    assert isinstance(next(iter(loader.batch_sampler))[0], SampleKey)
