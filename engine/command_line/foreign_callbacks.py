"""Callbacks that a configuration adds: refuses those that would fail, or break what yolofit promises.

They are checked before a run folder is made: a metric that does not exist would otherwise end the run after its first
epoch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar

from engine.errors import ConfigError

REFUSED = {
    "BackboneFinetuning": "use model.freeze_layers",
    "BaseFinetuning": "use model.freeze_layers",
    "BatchSizeFinder": "data.micro_batch_size: auto plans what fits",
    "EMAWeightAveraging": "the weights are averaged already: see model.ema",
    "GradientAccumulationScheduler": "use data.batch_size and data.micro_batch_size",
    "LearningRateFinder": "it needs a loop of Lightning's own: set model.optimizer.lr",
    "LearningRateMonitor": "it needs a logger: leave out trainer.logger: false",
    "ModelPruning": "it changes the network that the plan and checkpoints are of",
    "StochasticWeightAveraging": "the weights are averaged already: see model.ema",
    "Timer": "use trainer.max_time",
    "WeightAveraging": "the weights are averaged already: see model.ema",
}
OWN_FILES = ("best", "last")
LOSSES = ("box_loss", "cls_loss", "dfl_loss")
MEASURED = (
    *LOSSES,
    *("map50_95", "map50", "map75", "map_small", "map_medium", "map_large", "precision", "recall", "f1", "confidence"),
)
"""The metrics of validation, below ``val/``."""
TRAINED = (*LOSSES, "grad_norm", "clip_rate", "skipped_windows", "lr")
"""The values of a training epoch, below ``train/``."""


def check_callback_settings(trainer: Any) -> None:
    """Refuse callbacks that cannot work here, by their names in the parsed section ``trainer``.

    Raises:
        ConfigError: With the class and what to use instead.
    """
    for name in map(_class_name, _entries(trainer.callbacks)):
        is_refused = name in REFUSED and (name != "LearningRateMonitor" or trainer.logger is False)
        if is_refused:
            raise ConfigError(f"trainer.callbacks: {name}: {REFUSED[name]}: leave it out")
        if name.endswith("ProgressBar"):
            raise ConfigError(f"trainer.callbacks: {name}: yolofit has a progress line of its own: leave it out")


def check_callbacks(callbacks: Sequence[Callback], has_validation: bool) -> None:
    """Refuse callbacks that watch unknown metrics, or would overwrite yolofit's checkpoints.

    Raises:
        ConfigError: With the class, the argument and the remedy.
    """
    names = monitored_names(has_validation)
    for callback in callbacks:
        place = f"trainer.callbacks: {type(callback).__name__}"
        if isinstance(callback, ProgressBar):
            raise ConfigError(f"{place}: yolofit has a progress line of its own: leave it out")
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor not in (None, *names):
            near = [name for name in names if _plain(name) == _plain(callback.monitor)]
            remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
            raise ConfigError(f"{place}: monitor: {callback.monitor}: is not measured: {remedy}")
        if isinstance(callback, ModelCheckpoint) and _writes_own_files(callback):
            rule = "best.ckpt and last.ckpt are yolofit's own"
            raise ConfigError(f"{place}: {rule}: give another filename, and leave save_last out")


def check_distinct(callbacks: Sequence[Callback]) -> None:
    """Refuse two callbacks whose states have the same name in a checkpoint.

    Raises:
        ConfigError: With the class.
    """
    seen: set[str] = set()
    for callback in callbacks:
        has_state = type(callback).state_dict is not Callback.state_dict
        if has_state and callback.state_key in seen:
            remedy = "leave one out, or let them differ in monitor, mode or interval"
            raise ConfigError(f"trainer.callbacks: {type(callback).__name__}: is given twice: {remedy}")
        seen.add(callback.state_key)


def monitored_names(has_validation: bool) -> list[str]:
    """Return the names that a callback can monitor."""
    measured = [f"val/{name}" for name in MEASURED] if has_validation else []
    return measured + [f"train/{name}" for name in TRAINED]


def _writes_own_files(callback: ModelCheckpoint) -> bool:
    """Whether a callback would write best.ckpt or last.ckpt into the run folder."""
    return callback.dirpath is None and bool(callback.save_last or callback.filename in OWN_FILES)


def _plain(name: str) -> str:
    """Return a name without its group and signs: ``mAP50-95`` equals ``val/map50_95``."""
    return re.sub(r"^val[/_]|[\W_]", "", name.lower())


def _entries(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]


def _class_name(entry: Any) -> str:
    return str(getattr(entry, "class_path", type(entry).__name__)).rpartition(".")[2]
