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
    step = make_step(network, micro_batch_size=2)
    apply_recompute(network, level)
    for seed in range(NUM_STEPS):
        window = make_window(COUNTS, seed=seed)
        step.run(window if rank is None else window.split(3)[rank])
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


def train_with_a_fault(rank: int, folder: str) -> None:
    """Memory runs out on the second rank only, in the second window."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = make_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=2)
    for seed in range(NUM_STEPS):
        if rank == 1 and seed == 1:
            handle = network.model[5].register_full_backward_hook(run_out)
        step.run(make_window(COUNTS, seed=seed).split(2)[rank])
        if rank == 1 and seed == 1:
            handle.remove()
    state = {"weights": flat_weights(network), "memory": step.memory.state_dict()}
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_out(layer: torch.nn.Module, *_: object) -> None:
    if layer.training:
        layer.training = False  # once
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


@pytest.mark.slow
def test_run__adapts_on_all_ranks_together(tmp_path: Path) -> None:
    mp.spawn(train_with_a_fault, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert relative_error(states[1]["weights"], train("none", rank=None)) <= 1e-10
    assert torch.equal(states[0]["weights"], states[1]["weights"])
    assert [state["memory"]["current"]["recompute"] for state in states] == ["elementwise"] * 2
    causes = [state["memory"]["history"][0]["cause"] for state in states]
    assert causes == ["another device ran out of memory", "CUDA out of memory (tried to allocate 3.00 GiB)"]
