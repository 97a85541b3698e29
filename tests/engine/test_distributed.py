"""Several processes take the step that one would take, at every recompute level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.recompute import apply_recompute
from tests.helpers.training import flat_weights, make_network, make_step, make_window, relative_error

COUNTS = [3, 0, 5, 2]
NUM_STEPS = 5


def train(level: str, rank: int | None) -> torch.Tensor:
    """Weights after five windows of four images: all of them, or this rank's share (3 and 1)."""
    network = make_network(dtype=torch.float64)
    step = make_step(network)
    apply_recompute(network, level)
    for seed in range(NUM_STEPS):
        window = make_window(COUNTS, seed=seed)
        step.run(window if rank is None else window.split(3)[rank], micro_batch_size=2)
    return flat_weights(network)


def train_on_rank(rank: int, folder: str, level: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(train(level, rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["none", "elementwise", "block"])
def test_run__two_processes_equal_one(level: str, tmp_path: Path) -> None:
    mp.spawn(train_on_rank, args=(str(tmp_path), level), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert relative_error(first, train("none", rank=None)) <= 1e-10
