"""Reads checkpoints and weights of other origin. Reading a file never runs code.

A yolofit checkpoint is Lightning's plus a description of the network in plain values under ``yolofit``. The argument
``key`` of these functions is the option that named the file; messages begin with it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import ConfigError
from models.architecture import network_names
from models.network import build_network
from models.weights.saved_weights import SavedWeights, WeightsError, read_weights
from models.weights.transfer import Transfer, transfer_weights

EXAMPLE = "runs/fit/checkpoints/best.ckpt"


def network_description(network: str, class_names: list[str], image_size: int) -> dict[str, Any]:
    """Return what is needed to build the network again; each checkpoint stores it under ``yolofit``."""
    return {
        "network": network,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "image_size": image_size,
    }


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Load a yolofit checkpoint onto the CPU without running code from it.

    Raises:
        ConfigError: If the file is missing or not a complete yolofit checkpoint.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{key}: {path}: no such file: give a checkpoint such as {EXAMPLE}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {path}: cannot be read as a checkpoint ({reason}): is it damaged?") from error
    if not isinstance(checkpoint, dict) or "yolofit" not in checkpoint:
        raise ConfigError(f"{key}: {path}: is not a yolofit checkpoint: it has no entry 'yolofit'")
    return checkpoint


def check_classes(theirs: list[str], ours: list[str], key: str) -> None:
    """Refuse weights whose classes, ``theirs``, are not the data set's. Numbers decide: names may be translated.

    Raises:
        ConfigError: If the numbers of classes differ, or a name has another number.
    """
    remedy = "use the data.yaml that it was trained with"
    if len(theirs) != len(ours):
        counts = f"it has {len(theirs)} classes ({some(theirs)}), the data set {len(ours)} ({some(ours)})"
        raise ConfigError(f"{key}: {counts}: {remedy}")
    for number, name in enumerate(ours):
        if theirs[number] != name and name in theirs:
            places = f"{name} is its class {theirs.index(name)}, the data set's {number}"
            raise ConfigError(f"{key}: {places}: {remedy}")


def load_weights(network: nn.Module, path: Path, ours: dict[str, Any], key: str) -> Transfer:
    """Load what fits into a network of the description ``ours``; the classes of the file may differ.

    Returns:
        What was loaded and what was not; its ``table()`` is for people.

    Raises:
        ConfigError: If the file cannot be read, or holds another network.
    """
    with _named(path, key):
        saved = _read_weights_for(path, ours["network"])
        return transfer_weights(network, saved, ours["class_names"])


def check_weights(path: Path, network: str, key: str) -> None:
    """Check that `load_weights` could use a file.

    Raises:
        ConfigError: If it cannot be read, or holds another network.
    """
    with _named(path, key):
        _read_weights_for(path, network)


@contextmanager
def _named(path: Path, key: str) -> Iterator[None]:
    """Name the file and its option in errors about weights."""
    try:
        yield
    except WeightsError as error:
        raise ConfigError(f"{key}: {path}: {error}") from error


def _read_weights_for(path: Path, network: str) -> SavedWeights:
    saved = read_weights(path)
    base = saved.network and base_network(saved.network)
    if base and base != network:
        remedy = "set model.network to it" if base in network_names() else "use other weights"
        raise WeightsError(f"holds a {saved.network}, the run's network is a {network}: {remedy}")
    return saved


@dataclass
class LoadedNetwork:
    """The network of a file, with everything that its use needs."""

    network: nn.Module
    """In evaluation mode, in FP32 on the CPU."""
    name: str
    """Such as ``yolo11l``."""
    class_names: list[str]
    """Names by class number."""
    image_size: int
    """Side of the square input in pixels."""

    @property
    def description(self) -> dict[str, Any]:
        """What is needed to build the network again."""
        return network_description(self.name, self.class_names, self.image_size)


def load_network(path: Path, key: str, default_image_size: int = 640) -> LoadedNetwork:
    """Build the network that a file describes; ``default_image_size``, in pixels, is for files that have none.

    Raises:
        ConfigError: If the file cannot be read, or does not hold one of yolofit's networks completely.
    """
    with _named(path, key):
        saved = read_weights(path)
        if saved.network is None or saved.network not in network_names():
            known = "does not say which network it holds" if saved.network is None else f"holds a {saved.network}"
            raise WeightsError(f"{known}: give a yolofit checkpoint or an Ultralytics file of a YOLO11 detector")
        num_classes = _num_classes(saved)
        names = saved.class_names or [f"class {number}" for number in range(num_classes)]
        if len(names) != num_classes:
            raise WeightsError(f"names {len(names)} classes, but its head has {num_classes}")
        network = build_network(saved.network, len(names))
        try:
            network.load_state_dict(saved.state)
        except RuntimeError as error:  # names or shapes that differ
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError(f"does not hold all of a {saved.network} ({reason[:200]})") from error
    return LoadedNetwork(network.eval(), saved.network, names, saved.image_size or default_image_size)


def base_network(network: str) -> str:
    """Return ``yolo11n`` for ``yolo11n-seg``: the two differ only in the head."""
    return network.split("-")[0]


def _num_classes(saved: SavedWeights) -> int:
    counts = {tensor.shape[0] for name, tensor in saved.state.items() if name.endswith(".2.bias") and ".cv3." in name}
    if len(counts) != 1:
        raise WeightsError("has no detection head: its number of classes cannot be determined")
    return counts.pop()


def some(names: list[str], most: int = 3) -> str:
    """Join the first of several names, for messages."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
