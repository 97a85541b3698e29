"""Validate weights: ``python -m engine.validate --config FILE --ckpt_path CKPT [--json]``.

The file may be a checkpoint of yolofit, an Ultralytics ``.pt`` or safetensors. Which network it holds is in it.
"""

from __future__ import annotations

import json

from engine.checkpoint import EXAMPLE, load_network
from engine.cli import CommandLine
from engine.errors import ConfigError, run_command
from engine.metrics import DetectionResults
from engine.trainer_keys import explained_by_lightning


def main(args: list[str] | None = None) -> DetectionResults:
    """Print the metrics of a file's weights, the averaged ones if it has two kinds, on the validation set."""
    cli = CommandLine(args, writes_run=False)
    if cli.ckpt_path is None:
        raise ConfigError(f"--ckpt_path: missing: name the weights to validate, such as {EXAMPLE}")
    loaded = load_network(cli.ckpt_path, "--ckpt_path")
    cli.config.model.network, cli.config.model.weights = loaded.name, None
    cli.build()
    _check_classes(loaded.class_names, cli.datamodule.class_names)
    cli.model.ema.network.load_state_dict(loaded.network.state_dict())
    with explained_by_lightning():
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    results = cli.model.results
    print(json.dumps(results.as_dict()) if cli.config_init.json else results.table())
    return results


def _check_classes(theirs: list[str], ours: list[str]) -> None:
    """Refuse weights that tell other things apart than the data set does. Numbers count: names may be translated.

    Raises:
        ConfigError: If there are more classes on one side, or a name stands for another number.
    """
    remedy = "use the data.yaml that it was trained with"
    if len(theirs) != len(ours):
        counts = f"it has {len(theirs)} classes ({_some(theirs)}), the data set {len(ours)} ({_some(ours)})"
        raise ConfigError(f"--ckpt_path: {counts}: {remedy}")
    for number, name in enumerate(ours):
        if theirs[number] != name and name in theirs:
            places = f"{name} is its class {theirs.index(name)}, the data set's {number}"
            raise ConfigError(f"--ckpt_path: {places}: {remedy}")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


if __name__ == "__main__":
    run_command(main)
