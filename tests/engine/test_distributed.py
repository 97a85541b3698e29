"""Several processes take the step that one would take, at every recompute level."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.recompute import apply_recompute
from tests.helpers.training import flat_weights, make_network, make_step, make_window, relative_error

COUNTS = [3, 0, 5, 2]
NUM_STEPS = 5
LEVELS = ("none", "elementwise", "block")


def train(level: str, rank: int | None) -> torch.Tensor:
    """Weights after five windows of four images: all of them, or this rank's share (3 and 1)."""
    network = make_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=2)
    apply_recompute(network, level)
    for seed in range(NUM_STEPS):
        window = make_window(COUNTS, seed=seed)
        step.run(window if rank is None else window.split(3)[rank])
    return flat_weights(network)


def train_with_a_fault(rank: int) -> dict:
    """Memory runs out on the second rank only, in the second window."""
    network = make_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=2)
    for seed in range(NUM_STEPS):
        if rank == 1 and seed == 1:
            handle = network.model[5].register_full_backward_hook(run_out)
        step.run(make_window(COUNTS, seed=seed).split(2)[rank])
        if rank == 1 and seed == 1:
            handle.remove()
    return {"weights": flat_weights(network), "memory": step.memory.state_dict()}


def run_out(layer: torch.nn.Module, *_: object) -> None:
    if layer.training:
        layer.training = False  # once
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def work(rank: int, folder: str) -> None:
    """All that one of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {level: train(level, rank) for level in LEVELS}
    torch.save(results | {"fault": train_with_a_fault(rank)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes came to; to start them takes longer than their work."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    return train("none", rank=None)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_run__two_processes_equal_one(level: str, ranks: list[dict], alone: torch.Tensor) -> None:
    assert torch.equal(ranks[0][level], ranks[1][level])
    assert relative_error(ranks[0][level], alone) <= 1e-10


@pytest.mark.slow
def test_run__adapts_on_all_ranks_together(ranks: list[dict], alone: torch.Tensor) -> None:
    states = [rank["fault"] for rank in ranks]
    assert relative_error(states[1]["weights"], alone) <= 1e-10
    assert torch.equal(states[0]["weights"], states[1]["weights"])
    assert [state["memory"]["current"]["recompute"] for state in states] == ["elementwise"] * 2
    causes = [state["memory"]["history"][0]["cause"] for state in states]
    assert causes == ["another device ran out of memory", "CUDA out of memory (tried to allocate 3.00 GiB)"]
