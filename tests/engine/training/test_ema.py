from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.training.ema import EmaConfig, WeightAverage
from tests.helpers.storage import StorageMeter


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1))


def drift(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network(torch.randn(2, 3, 8, 8))  # changes the BatchNorm statistics


@pytest.mark.parity
def test_update__fifty_updates_match_reference() -> None:
    from ultralytics.utils.torch_utils import ModelEMA

    network = small_network()
    ours, theirs = WeightAverage(network, EmaConfig()), ModelEMA(network)
    for update in range(1, 51):
        drift(network)
        ours.update(network, update, torch.tensor(True))
        theirs.update(network)
    reference = theirs.ema.state_dict()
    for name, tensor in ours.network.state_dict().items():
        torch.testing.assert_close(tensor, reference[name], rtol=1e-6, atol=1e-6)
    assert not torch.equal(ours.network[1].running_mean, network[1].running_mean)


def test_update__skipped_window_changes_nothing() -> None:
    network = small_network()
    average = WeightAverage(network, EmaConfig())
    before = {name: tensor.clone() for name, tensor in average.network.state_dict().items()}
    drift(network)
    with torch.no_grad():
        network[0].weight.fill_(float("nan"))
    average.update(network, 1, torch.tensor(False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.network.state_dict().items())


def test_update__makes_no_copy_of_the_weights() -> None:
    network = nn.Conv2d(256, 256, 3)
    average = WeightAverage(network, EmaConfig())
    finite = torch.tensor(True)
    with StorageMeter([*network.parameters(), *average.parameters()]) as meter:
        average.update(network, 1, finite)
    assert meter.peak_bytes < 1024


def test_weight_average__is_frozen_and_in_evaluation_mode() -> None:
    average = WeightAverage(small_network(), EmaConfig())
    assert not any(p.requires_grad for p in average.parameters())
    assert not any(module.training for module in average.network.modules())


def test_ema_config__rejects_values_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"model.ema.decay: 1.0: must be in"):
        EmaConfig(decay=1.0)
    with pytest.raises(ValueError, match=r"model.ema.ramp_steps: 0: must be above 0"):
        EmaConfig(ramp_steps=0)
