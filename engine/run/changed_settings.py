"""Resuming with other settings: refuses those that cannot be right, and names those that change the run.

Every ``last.ckpt`` holds the settings of its run by key; `check_settings` compares them with those of the resumed run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.run.checkpoint import check_classes, read_checkpoint
from engine.run.checkpoint_io import verify_checkpoint
from engine.run.starting_network import changed_key, is_gone

KEY = "--ckpt_path"
REFUSED = ("model.network", "model.optimizer.name", "model.freeze_layers")
"""Settings that decide which weights exist, and what the optimizer knows of each."""
WITHOUT_EFFECT = (
    "data.workers",
    "data.cache",
    "data.micro_batch_size",
    "data.max_epochs",  # follows from trainer.max_epochs
    "data.seed",  # follows from seed_everything
    "model.weights",  # only read at the start
    "model.recompute",
    "model.recompute_layers",
    "model.fused_kernels",
    "model.cuda_graphs",
    "model.max_skipped_windows",
)
"""Settings of data and model that change how a run computes, but not what. Other sections never change it."""
COMPARED_BESIDE = ("seed_everything", "trainer.max_epochs", "trainer.limit_train_batches")


def settings_of(config: Any) -> dict[str, Any]:
    """Return the keys of a parsed configuration that decide the results of a run, as plain values."""
    flat = vars(config.as_flat())
    return {
        key: value if isinstance(value, bool | int | float | str | None) else str(value)
        for key, value in flat.items()
        if key in COMPARED_BESIDE or (key.startswith(("data.", "model.")) and not _is_below(key, WITHOUT_EFFECT))
    }


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint from which a run can resume.

    Raises:
        ConfigError: If it is missing, damaged, not a yolofit checkpoint, or holds weights only.
    """
    verify_checkpoint(path, KEY)
    checkpoint = read_checkpoint(path, KEY)
    if "optimizer_states" not in checkpoint:
        raise ConfigError(
            f"{KEY}: {path}: holds weights only, from which a run cannot resume: give the last.ckpt of that run, or "
            f"start from these weights with --model.weights {path}"
        )
    return checkpoint


def check_settings(path: Path, checkpoint: dict[str, Any], ours: dict[str, Any], class_names: list[str]) -> list[str]:
    """Compare the `settings_of` a run, ``ours``, with those of the checkpoint that it resumes from.

    Returns:
        A line for each difference that is allowed.

    Raises:
        ConfigError: If the run cannot resume with these settings.
    """
    about = checkpoint["yolofit"]
    known = {
        "model.network": about["network"],
        "data.image_size": about["image_size"],
    }  # older checkpoints have only these
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
    if is_gone(ours["model.network"]):
        gone = f"model.network: {ours['model.network']}: no such file"
        notes.append(f"{gone}: the network is built as {path} describes it")
    if about["class_names"] != class_names:
        notes.append(f"names: {', '.join(class_names)} from here on, were {', '.join(about['class_names'])}")
    return notes


def _check_network(path: Path, about: dict[str, Any], network: str) -> None:
    """Refuse a YAML file that was changed since; a file that is gone does not matter."""
    if "architecture" in about and (key := changed_key(network, about["architecture"])):
        remedy = "leave the file as it was, or start from its weights with --model.weights"
        raise ConfigError(f"model.network: {network}: {key}: is not as in {path}: {remedy}")


def _progress(checkpoint: dict[str, Any]) -> tuple[int, bool]:
    """Return the number of finished epochs of a checkpoint, and whether it is within another epoch."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return epochs["processed"], epochs["processed"] < epochs["ready"]


def _is_below(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
