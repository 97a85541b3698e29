"""Every detector of Ultralytics, small and large, and ten architectures of our own: exact at every recompute level.

In FP64, at 64 px (128 px where the coarsest stride is 64), by the functions of `benchmarks/architectures.py`. The table
that it makes has the networks in full width, and bytes and plans as well. Here the large ones are as deep as they are,
but narrow, which saves time and memory.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import pytest
import torch
from architectures import Pass, cases, measured_criterion, measured_level, our_loss, window_for
from torch import nn

from models.architecture import Architecture, ArchitectureError, network_names, read_architecture
from models.network import build_network
from models.recompute.levels import Level

LEVELS = get_args(Level)[1:]
CASES = {name: (source, num_classes) for name, source, num_classes in cases()}
OWN = [name for name in CASES if name.startswith("own ")]
REFUSED = [name for name in CASES if name.startswith(("yolov10", "yolo26"))]
TRAINED = [name for name in CASES if name not in REFUSED]
FIXED_WIDTH = "yolov9e"
"""Some of its layers have channels that do not follow the width."""
NARROW = 0.25
BOUND = 1e-9
"""Relative, in FP64: rounding makes 1e-14."""


class Built(NamedTuple):
    """A network, and its step at `none`."""

    name: str
    network: nn.Module
    num_classes: int
    plain: Pass


def narrow(name: str) -> Architecture:
    """The architecture with its depth, and the width of the smallest scale."""
    architecture = read_architecture(CASES[name][0])
    if scales := architecture.get("scales"):
        (_, *width), (depth, *_) = next(iter(scales.values())), scales[architecture["scale"]]
        return architecture | {"scales": {architecture["scale"]: [depth, *width]}}
    return architecture if name == FIXED_WIDTH or name in OWN else architecture | {"width_multiple": NARROW}


@pytest.fixture(scope="module", params=TRAINED)
def built(request: pytest.FixtureRequest) -> Built:
    name, num_classes = request.param, CASES[request.param][1]
    torch.manual_seed(0)
    network = build_network(narrow(name), num_classes)
    return Built(name, network, num_classes, Pass(network, window_for(network, num_classes), our_loss))


@pytest.mark.parity
def test_loss__and_its_gradient_are_those_of_ultralytics(built: Built) -> None:
    found = measured_criterion(built.network, built.num_classes, built.plain)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("level", LEVELS)
def test_level__changes_neither_loss_nor_gradients_nor_statistics(built: Built, level: Level) -> None:
    found = measured_level(built.network, built.num_classes, level, built.plain)
    assert found["loss_equal"] and found["statistics_equal"] and found["gradient_error"] <= BOUND, found


@pytest.mark.parametrize("name", REFUSED)
def test_end_to_end_head__is_refused(name: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^{name}: has an end-to-end head"):
        read_architecture(name)


def test_cases__are_every_file_and_ten_of_our_own() -> None:
    assert len(OWN) == 10
    assert set(TRAINED) - set(OWN) <= set(network_names())

    def family(name: str) -> str:
        start, _, variant = name.partition("-")
        return f"{start if start.startswith(('yolov3', 'yolov9')) else start[:-1]}-{variant}"

    assert {family(name) for name in network_names()} == {family(name) for name in TRAINED if name not in OWN}
