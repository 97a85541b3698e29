"""Going on from a checkpoint with other settings: what cannot be right is refused, what changes the run is said.

Every ``last.ckpt`` holds the settings of the run that has written it, by key. They are compared with those of the run
that goes on: see `check_settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.run.checkpoint import check_classes, read_checkpoint
from engine.run.checkpoint_io import verify_checkpoint
from engine.run.starting_network import changed_key

KEY = "--ckpt_path"
REFUSED = ("model.network", "model.optimizer.name", "model.freeze_layers")
"""What decides which weights there are, and what the optimizer knows of each."""
WITHOUT_EFFECT = (
    "data.workers",
    "data.cache",
    "data.micro_batch_size",
    "data.max_epochs",  # is trainer.max_epochs
    "data.seed",  # is seed_everything
    "model.weights",  # the start's, which has been
    "model.recompute",
    "model.recompute_layers",
    "model.fused_kernels",
    "model.cuda_graphs",
    "model.max_skipped_windows",
)
"""Settings of the data and the model that change how, but not what is computed; all of other sections do neither."""
COMPARED_BESIDE = ("seed_everything", "trainer.max_epochs", "trainer.limit_train_batches")


def settings_of(config: Any) -> dict[str, Any]:
    """What decides what a run computes, as plain values by key.

    Args:
        config: A parsed configuration.
    """
    flat = vars(config.as_flat())
    return {
        key: value if isinstance(value, bool | int | float | str | None) else str(value)
        for key, value in flat.items()
        if key in COMPARED_BESIDE or (key.startswith(("data.", "model.")) and not _is_below(key, WITHOUT_EFFECT))
    }


def read_state(path: Path) -> dict[str, Any]:
    """The checkpoint of a run that can go on from it.

    Raises:
        ConfigError: If it is missing, damaged, not a yolofit checkpoint, or holds weights only.
    """
    verify_checkpoint(path, KEY)
    checkpoint = read_checkpoint(path, KEY)
    if "optimizer_states" not in checkpoint:
        raise ConfigError(
            f"{KEY}: {path}: holds weights only, from which a run cannot go on: give the last.ckpt of that run, or "
            f"start from these weights with --model.weights {path}"
        )
    return checkpoint


def check_settings(path: Path, checkpoint: dict[str, Any], ours: dict[str, Any], class_names: list[str]) -> list[str]:
    """Compare the settings of a run with those of the checkpoint that it goes on from.

    Args:
        path: The checkpoint, for messages.
        checkpoint: Its content.
        ours: The run's `settings_of`.
        class_names: Of the run's data set.

    Returns:
        A line for each difference that is allowed.

    Raises:
        ConfigError: If the run cannot go on with these settings.
    """
    about = checkpoint["yolofit"]
    known = {"model.network": about["network"], "data.image_size": about["image_size"]}  # all that older ones know
    theirs = about.get("settings", known)
    check_classes(about["class_names"], class_names, f"{KEY}: {path}")
    changed = [key for key in theirs if key in ours and theirs[key] != ours[key]]
    for key in changed:
        if key in REFUSED:
            remedy = "leave it as it was, or start from its weights with --model.weights"
            raise ConfigError(f"{key}: {ours[key]}: {path} is of a run with {theirs[key]}: {remedy}")
    _check_network(path, about, ours["model.network"])
    num_epochs, is_within_epoch = _progress(checkpoint)
    if ours["trainer.max_epochs"] < num_epochs:
        raise ConfigError(
            f"trainer.max_epochs: {ours['trainer.max_epochs']}: {path} has {num_epochs} epochs behind it: give more"
        )
    if is_within_epoch and "data.batch_size" in changed:
        raise ConfigError(
            f"data.batch_size: {ours['data.batch_size']}: {path} is of the middle of an epoch with windows of "
            f"{theirs['data.batch_size']} images: change it at the end of an epoch"
        )
    notes = [f"{key}: {ours[key]} from here on, was {theirs[key]}" for key in changed]
    if about["class_names"] != class_names:
        notes.append(f"names: {', '.join(class_names)} from here on, were {', '.join(about['class_names'])}")
    return notes


def _check_network(path: Path, about: dict[str, Any], network: str) -> None:
    """Refuse a YAML file that was changed since; a file that is gone does not matter."""
    if "architecture" in about and (key := changed_key(network, about["architecture"])):
        remedy = "leave the file as it was, or start from its weights with --model.weights"
        raise ConfigError(f"model.network: {network}: {key}: is not as in {path}: {remedy}")


def _progress(checkpoint: dict[str, Any]) -> tuple[int, bool]:
    """Epochs that a checkpoint's run had finished, and whether it was in the middle of another."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return epochs["processed"], epochs["processed"] < epochs["ready"]


def _is_below(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
