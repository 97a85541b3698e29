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
from ultralytics.nn.tasks import DetectionModel

from data.loading.sampler import STRIDE_PX
from engine.errors import ConfigError, some_of
from models.architecture import (
    NAME,
    SUFFIXES,
    Architecture,
    ArchitectureError,
    check_architecture,
    network_names,
    plain_name,
    read_architecture,
)
from models.network import build_network, input_step_px
from models.weights.saved_weights import SavedWeights, WeightsError, plain_values, read_weights
from models.weights.transfer import Transfer, transfer_weights, with_class_width

EXAMPLE = "runs/fit/checkpoints/best.ckpt"
NAMELESS = "network without a name"


def network_description(
    network: str, class_names: list[str], image_size: int, architecture: Architecture | None = None
) -> dict[str, Any]:
    """Return what is needed to build the network again; each checkpoint stores it under ``yolofit``.

    Args:
        network: Name of the network, or path of its YAML file.
        class_names: Names by class number.
        image_size: Side of the square input in pixels.
        architecture: Architecture of the network; checkpoints of older versions have none.
    """
    description = {
        "network": network,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "image_size": image_size,
    }
    return description if architecture is None else {**description, "architecture": plain_values(architecture)}


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
    """Refuse weights whose classes, ``theirs``, are not the data set's.

    Classes are compared by number, because names may be translated.

    Raises:
        ConfigError: If the numbers of classes differ, or a name has another number.
    """
    remedy = "use the data.yaml that it was trained with"
    if len(theirs) != len(ours):
        counts = f"it has {len(theirs)} classes ({some_of(theirs, 3)}), the data set {len(ours)} ({some_of(ours, 3)})"
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
    """Name the file and its option in errors about weights and networks."""
    try:
        yield
    except (WeightsError, ArchitectureError) as error:
        raise ConfigError(f"{key}: {path}: {error}") from error


def _read_weights_for(path: Path, network: str) -> SavedWeights:
    saved = read_weights(path)
    base, own_base = (base_network(name) if name else None for name in (saved.network, network))
    if base and own_base and base != own_base:
        remedy = "set model.network to it" if base in network_names() else "use other weights"
        raise WeightsError(f"holds a {saved.network}, the run's network is a {network}: {remedy}")
    return saved


@dataclass
class LoadedNetwork:
    """The network of a file, with everything that its use needs."""

    network: DetectionModel
    """In evaluation mode, in FP32 on the CPU."""
    name: str
    """Such as ``yolo11l``."""
    class_names: list[str]
    """Names by class number."""
    image_size: int
    """Side of the square input in pixels."""
    stride_px: int = STRIDE_PX
    """Largest stride of the network; sides of images are multiples of it."""

    @property
    def description(self) -> dict[str, Any]:
        """What is needed to build the network again."""
        return network_description(self.name, self.class_names, self.image_size, self.network.yaml)


def load_network(path: Path, key: str, default_image_size: int = 640) -> LoadedNetwork:
    """Build the network that a file describes; ``default_image_size``, in pixels, is for files that have none.

    Raises:
        ConfigError: If the file cannot be read, or does not hold a complete detector.
    """
    with _named(path, key):
        saved = read_weights(path)
        architecture = _architecture_of(saved)
        num_classes = saved.num_classes
        if num_classes is None:
            raise WeightsError("has no detection head: its number of classes cannot be determined")
        names = saved.class_names or [f"class {number}" for number in range(num_classes)]
        if len(names) != num_classes:
            raise WeightsError(f"names {len(names)} classes, but its head has {num_classes}")
        network = with_class_width(build_network(architecture, num_classes), saved)
        stride_px = input_step_px(network)
        try:
            network.load_state_dict(saved.state)
        except RuntimeError as error:  # names or shapes that differ
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError(f"does not hold all of a {saved.network} ({reason[:200]})") from error
    image_size = -(-(saved.image_size or default_image_size) // stride_px) * stride_px
    return LoadedNetwork(network.eval(), saved.network or NAMELESS, names, image_size, stride_px)


def base_network(network: str) -> str | None:
    """Return ``yolo11n`` for ``yolo11n-seg``, which differ only in the head; None for a YAML file of one's own."""
    name = plain_name(network)
    match = NAME.fullmatch(name)
    if match is None or (Path(network).suffix in SUFFIXES and name not in network_names()):
        return None
    return match["family"] + match["scale"]


def network_in(saved: SavedWeights) -> str | None:
    """Value of ``model.network`` for these weights, if known. For a segmentation model, the detector it extends."""
    if saved.network is None or saved.network in network_names():
        return saved.network
    try:
        check_architecture(saved.architecture or {})
    except ArchitectureError:
        base = base_network(saved.network)
        return base if base in network_names() else None
    return saved.network


def _architecture_of(saved: SavedWeights) -> Architecture:
    """The architecture in a file or, in an older one, that of its network's name; checked."""
    if saved.architecture is not None:
        check_architecture(saved.architecture)
        return saved.architecture
    if saved.network is not None and saved.network in network_names():
        return read_architecture(saved.network)
    known = "does not say which network it holds" if saved.network is None else f"holds a {saved.network}"
    raise WeightsError(f"{known}: give a yolofit checkpoint or an Ultralytics file of a detector")
