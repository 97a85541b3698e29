"""The network of a run: from a name, a YAML file or a checkpoint, with class branches as wide as in the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from engine.errors import ConfigError
from models.architecture import (
    CLASS_WIDTH,
    SUFFIXES,
    Architecture,
    ArchitectureError,
    architecture_file,
    network_names,
    plain_name,
    read_architecture,
)
from models.network import build_network, input_step_px
from models.weights.saved_weights import SavedWeights, WeightsError, plain_values, read_weights
from models.weights.transfer import with_class_width

NOT_COMPARED = ("nc", "ch", "channels", CLASS_WIDTH, "yaml_file")
"""What may differ between a YAML file and the architecture in a checkpoint of it."""


class StartingNetwork(NamedTuple):
    """What it takes to build the network of a run, and to give it images."""

    architecture: Architecture
    """In plain values."""
    stride_px: int
    """Its largest stride: sides of images are multiples of it."""


def starting_network(
    network: str, num_classes: int, weights: Path | None = None, checkpoint: Path | None = None
) -> StartingNetwork:
    """Find out which network a run starts with; the run's random numbers stay as they are.

    Its class branches are as wide as those of the file of weights. A run that is resumed takes everything from its
    checkpoint. An unreadable file is ignored here; the error is raised when the file is loaded.

    Args:
        network: ``model.network``.
        num_classes: Classes of the data set.
        weights: ``model.weights``.
        checkpoint: The file to resume from, to validate or to plan for.

    Raises:
        ConfigError: If there is no such network, or it cannot be built.
    """
    saved = _read(checkpoint or weights)
    with torch.random.fork_rng(devices=[]), network_named(network):
        if checkpoint is not None and saved is not None and saved.architecture is not None:
            architecture = saved.architecture
        else:
            architecture = _architecture(network, saved)
        built = build_network(architecture, num_classes)
        if saved is not None:
            built = with_class_width(built, saved)
        return StartingNetwork(plain_values(built.yaml), input_step_px(built))


@contextmanager
def network_named(network: str) -> Iterator[None]:
    """Turn an ArchitectureError into a ConfigError that names the key and the network."""
    try:
        yield
    except ArchitectureError as error:
        text = str(error)
        message = text if text.startswith((network, Path(network).name)) else f"{network}: {text}"
        raise ConfigError(f"model.network: {message}") from error


def _read(path: Path | None) -> SavedWeights | None:
    if path is None:
        return None
    try:
        return read_weights(path)
    except WeightsError:
        return None


def _architecture(network: str, saved: SavedWeights | None) -> Architecture:
    """Architecture by name or YAML file; else the one stored in the weights, if they name this network."""
    try:
        return read_architecture(network)
    except ArchitectureError:
        if saved is None or saved.architecture is None or saved.network != network:
            raise
        return saved.architecture


def is_gone(network: str) -> bool:
    """Whether ``model.network`` is the path of a YAML file that does not exist."""
    path = Path(network)
    return path.suffix in SUFFIXES and architecture_file(path) is None and plain_name(network) not in network_names()


def changed_key(network: str, theirs: Architecture) -> str | None:
    """The first key of a YAML file that is not as in the architecture of a checkpoint; None if the file is gone.

    Raises:
        ConfigError: If the file is there, but describes no network any more.
    """
    if Path(network).suffix not in SUFFIXES or architecture_file(Path(network)) is None:
        return None
    with network_named(network):
        ours = plain_values(build_network(network, 1).yaml)
    keys = (key for key in dict.fromkeys([*ours, *theirs]) if key not in NOT_COMPARED)
    return next((key for key in keys if ours.get(key) != theirs.get(key)), None)
