"""yolofit checkpoints: Lightning's, plus a description of the network in plain values. Reading one never runs code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import ConfigError

AVERAGED_WEIGHTS = "ema.network."
EXAMPLE = "runs/fit/checkpoints/best.ckpt"


def network_description(network: str, class_names: list[str], image_size: int) -> dict[str, Any]:
    """What it takes to build the network again: stored in each checkpoint under ``yolofit``."""
    return {
        "network": network,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "image_size": image_size,
    }


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Load a yolofit checkpoint onto the CPU, without executing anything in it.

    Args:
        path: The file.
        key: The option that named it, for messages.

    Raises:
        ConfigError: If there is no such file, or it is not a whole yolofit checkpoint.
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


def check_network(checkpoint: dict[str, Any], ours: dict[str, Any], key: str) -> None:
    """Refuse a checkpoint of another network, or of other classes.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        ours: The `network_description` of the network that shall take its weights.
        key: The option that named the checkpoint, for messages.

    Raises:
        ConfigError: Saying what differs.
    """
    theirs = checkpoint["yolofit"]
    for name, remedy in (("network", "set model.network to it"), ("class_names", "use the data set of its run")):
        if theirs[name] != ours[name]:
            raise ConfigError(f"{key}: its {name} is {theirs[name]}, the run's is {ours[name]}: {remedy}")


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint, by the names that `models.network.build_network`'s network uses."""
    state = checkpoint["state_dict"]
    return {
        name.removeprefix(AVERAGED_WEIGHTS): tensor
        for name, tensor in state.items()
        if name.startswith(AVERAGED_WEIGHTS)
    }
