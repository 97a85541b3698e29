"""Two processes under DistributedDataParallel: the reduced gradients are the same at every level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.detection.loss import DetectionLoss, LossGains
from models.network import head_strides
from models.recompute.levels import apply_recompute
from tests.helpers.runs import run_together
from tests.helpers.training import flat_gradient, make_network, make_window, relative_error

LEVELS = ("none", "elementwise", "block")


def reduced_gradient(level: str, rank: int) -> Tensor:
    """Gradient of this rank's share of a window, averaged over the ranks, in fp32."""
    network = make_network()
    apply_recompute(network, level)
    share = make_window([3, 0, 5, 2]).split(2)[rank]
    replica = DistributedDataParallel(network)
    predictions = replica(share.images.float() / 255)
    sums = DetectionLoss(head_strides(network))(predictions, share.boxes_xyxy_px, share.classes, share.image_index)
    LossGains().apply(sums).sum().backward()
    return flat_gradient(network)


def write_gradients(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({level: reduced_gradient(level, rank) for level in LEVELS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_apply_recompute__same_gradients_of_two_processes(tmp_path: Path) -> None:
    run_together(write_gradients, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for level in LEVELS:
        assert torch.equal(first[level], second[level])
        assert relative_error(first[level], first["none"]) <= 1e-5
    assert not torch.equal(first["block"], first["none"])  # the levels were on: rounding differs
