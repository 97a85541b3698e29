"""Several processes take the same step as one process, at every recompute level."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data.loading.batch import Batch
from engine.loop.processes import share_state
from models.network import batch_norms
from models.recompute.levels import apply_recompute
from tests.helpers.faults import OutOfMemoryAt
from tests.helpers.runs import run_together
from tests.helpers.training import flat_weights, make_network, make_step, make_window, relative_error

COUNTS = [3, 0, 5, 2]
NUM_STEPS = 5


def train(level: str, rank: int | None, shares: Sequence[slice] = ()) -> torch.Tensor:
    """Weights after five windows of four images, or of this rank's share of them."""
    network = make_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=2)
    apply_recompute(network, level)
    for seed in range(NUM_STEPS):
        window = make_window(COUNTS, seed=seed)
        step.run(window if rank is None else part_of(window, shares[rank]))
    return flat_weights(network)


def part_of(window: Batch, share: slice) -> Batch:
    """Some neighboring images of a window."""
    singles = window.split(1)[share]
    boxes_per_image = [len(single.classes) for single in singles]
    return Batch(
        images=torch.cat([window.images[:0], *(single.images for single in singles)]),
        boxes_xyxy_px=torch.cat([window.boxes_xyxy_px[:0], *(single.boxes_xyxy_px for single in singles)]),
        classes=torch.cat([window.classes[:0], *(single.classes for single in singles)]),
        image_index=torch.repeat_interleave(
            torch.arange(len(singles)), torch.tensor(boxes_per_image, dtype=torch.int64)
        ),
        names=[name for single in singles for name in single.names],
    )


def train_on_rank(rank: int, folder: str, level: str, shares: Sequence[slice]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    sizes, reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, **how: (sizes.append(tensor.numel()), reduce(tensor, **how))[1]
    weights = train(level, rank, shares)
    torch.save({"weights": weights, "num_reduced": sum(sizes), "num_calls": len(sizes)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "cuts"),
    [
        ("none", [0, 3, 4]),
        ("elementwise", [0, 3, 4]),
        ("block", [0, 3, 4]),
        ("none", [0, 1, 3, 4]),
        ("none", [0, 1, 2, 4]),  # the second rank has no box
        ("none", [0, 4, 4]),  # and here no image
    ],
)
def test_run__several_processes_equal_one(level: str, cuts: list[int], tmp_path: Path) -> None:
    """In FP64, with uneven shares. Each gradient is sent once per window for any number of micro-batches."""
    shares = [slice(*pair) for pair in pairwise(cuts)]
    run_together(train_on_rank, (str(tmp_path), level, shares), len(shares))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(shares))]
    assert all(torch.equal(rank["weights"], ranks[0]["weights"]) for rank in ranks)
    assert relative_error(ranks[0]["weights"], train("none", rank=None)) <= 1e-10
    num_gradients = sum(p.numel() for p in make_network().parameters() if p.requires_grad)
    assert NUM_STEPS * num_gradients <= ranks[0]["num_reduced"] <= NUM_STEPS * (num_gradients + 20)


def train_with_a_fault(rank: int, folder: str, place: str) -> None:
    """On the second rank, memory runs out in the second window or spills before it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network = make_network(dtype=torch.float64)
    step = make_step(network, micro_batch_size=2)
    for seed in range(NUM_STEPS):
        is_disturbed = rank == 1 and seed == 1
        if is_disturbed and place == "backward":
            handle = network.model[5].register_full_backward_hook(run_out)
        if is_disturbed and place == "spill":
            step.ask_for_less("VRAM is spilling")
        # The ranks agree that they have accumulated, then add up their losses and gradients; the other rank waits.
        runs_out = is_disturbed and place == "exchange"
        with OutOfMemoryAt(2, lambda func: func.namespace == "c10d") if runs_out else nullcontext():
            step.run(make_window(COUNTS, seed=seed).split(2)[rank])
        if is_disturbed and place == "backward":
            handle.remove()
    state = {"weights": flat_weights(network), "memory": step.memory.state_dict()}
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_out(layer: torch.nn.Module, *_: object) -> None:
    if layer.training:
        layer.training = False  # once
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


CAUSES = {
    "backward": ["another device ran out of memory", "CUDA out of memory (tried to allocate 3.00 GiB)"],
    "exchange": ["CUDA out of memory (tried to allocate 2.00 GiB)"] * 2,
    "spill": ["VRAM is spilling"] * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("place", CAUSES)
def test_run__adapts_on_all_ranks_together(place: str, tmp_path: Path) -> None:
    run_together(train_with_a_fault, (str(tmp_path), place), 2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert relative_error(states[1]["weights"], train("none", rank=None)) <= 1e-10
    assert torch.equal(states[0]["weights"], states[1]["weights"])
    assert [state["memory"]["current"]["recompute"] for state in states] == ["elementwise"] * 2
    assert [state["memory"]["history"][0]["cause"] for state in states] == CAUSES[place]


def in_a_group(rank: int, folder: str, work: str) -> None:
    """Call one of the functions below as one of two ranks, and save its result."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(globals()[work](rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def both(work: str, folder: Path) -> list[dict]:
    run_together(in_a_group, (str(folder), work), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def statistics_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in batch_norms(network)])


def statistics_after_a_window(rank: int) -> dict:
    network = make_network(frozen=False)
    step = make_step(network)
    step.run(part_of(make_window(COUNTS), slice(2 * rank, 2 * rank + 2)))
    return {"network": statistics_of(network), "average": statistics_of(step.ema.network)}


@pytest.mark.slow
def test_run__running_statistics_are_the_mean_of_all_ranks(tmp_path: Path) -> None:
    """All ranks continue with the mean of the statistics that each rank has alone."""
    alone = torch.stack([statistics_after_a_window(rank)["network"] for rank in (0, 1)])
    assert relative_error(alone[0], alone[1]) > 1e-4
    ranks = both("statistics_after_a_window", tmp_path)
    for rank in ranks:
        assert relative_error(rank["network"], alone.mean(0)) <= 1e-6
    assert torch.equal(ranks[0]["average"], ranks[1]["average"])


def weights_of_its_own_seed(rank: int) -> dict:
    network = make_network(seed=rank)
    own = flat_weights(network)
    share_state(network)
    return {"own": own, "shared": flat_weights(network)}


@pytest.mark.slow
def test_share_state__all_have_the_weights_of_the_first(tmp_path: Path) -> None:
    ranks = both("weights_of_its_own_seed", tmp_path)
    assert not torch.equal(ranks[0]["own"], ranks[1]["own"])
    assert torch.equal(ranks[0]["shared"], ranks[0]["own"]) and torch.equal(ranks[1]["shared"], ranks[0]["own"])


def train_with_an_optimizer_that_runs_out(rank: int) -> dict:
    network = make_network()
    step = make_step(network, micro_batch_size=2)
    take_step, failures = step.take_step, [1] * rank

    def run_out_once() -> None:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        take_step()

    step.take_step = run_out_once
    for seed in range(2):
        step.run(make_window(COUNTS, seed=seed).split(2)[rank])
    return {"weights": flat_weights(network), "memory": step.memory.state_dict(), "steps": step.num_steps_taken}


@pytest.mark.slow
def test_run__all_ranks_lower_when_the_optimizer_of_one_runs_out(tmp_path: Path) -> None:
    ranks = both("train_with_an_optimizer_that_runs_out", tmp_path)
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    assert [rank["memory"]["current"]["recompute"] for rank in ranks] == ["elementwise"] * 2
    assert ranks[0]["memory"]["history"][0]["cause"] == "CUDA out of memory (tried to allocate 3.00 GiB)"


def train_with_an_overflow(rank: int) -> dict:
    """The backward pass of the second rank overflows in the second of three windows, as in fp16."""
    network = make_network()
    step = make_step(network, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    names: list[list[str]] = []
    step.guard.record = lambda finite, of: names.append(list(of)) if not finite else None
    for seed in range(3):
        hook = None
        if rank == 1 and seed == 1:
            hook = network.model[0].conv.weight.register_hook(lambda grad: grad * float("inf"))
        window = make_window(COUNTS, seed=seed).split(2)[rank]
        window.names = [f"rank{rank}-{name}" for name in window.names]
        step.run(window)
        if hook is not None:
            hook.remove()
    step.settle()
    scale = step.scaler.state_dict()
    return {"weights": flat_weights(network), "scale": scale, "steps": step.num_steps_taken, "names": names}


@pytest.mark.slow
def test_run__an_overflow_on_one_rank_is_one_of_all(tmp_path: Path) -> None:
    """All ranks skip the window, halve the fp16 scale and know its images."""
    ranks = both("train_with_an_overflow", tmp_path)
    assert [rank["scale"]["scale"] for rank in ranks] == [512.0, 512.0]
    assert ranks[0]["scale"] == ranks[1]["scale"]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"]) and ranks[0]["weights"].isfinite().all()
    assert [rank["steps"] for rank in ranks] == [2, 2]
    expected = ["rank0-image0.jpg", "rank0-image1.jpg", "rank1-image2.jpg", "rank1-image3.jpg"]
    assert ranks[0]["names"] == ranks[1]["names"] == [expected]


def test_run__with_batch_norm_over_devices_is_plain_in_one_process() -> None:
    """For programs that convert the network themselves."""
    plain = make_network(frozen=False)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(make_network(frozen=False))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
    for network in (plain, converted):
        make_step(network, micro_batch_size=2).run(make_window(COUNTS))
    assert torch.equal(flat_weights(plain), flat_weights(converted))
    for ours, expected in zip(batch_norms(converted), batch_norms(plain), strict=True):
        assert torch.equal(ours.running_mean, expected.running_mean)
