"""Validate weights: ``python -m engine.validate --config FILE --ckpt_path CKPT [--json]``.

The file may be a checkpoint of yolofit, an Ultralytics ``.pt`` or safetensors. Which network it holds is in it.
"""

from __future__ import annotations

import json

from engine.checkpoint import EXAMPLE, check_classes, load_network
from engine.cli import CommandLine
from engine.errors import ConfigError, run_command
from engine.metrics import DetectionResults


def main(args: list[str] | None = None) -> DetectionResults:
    """Print the metrics of a file's weights, the averaged ones if it has two kinds, on the validation set."""
    cli = CommandLine(args, writes_run=False)
    if cli.ckpt_path is None:
        raise ConfigError(f"--ckpt_path: missing: name the weights to validate, such as {EXAMPLE}")
    loaded = load_network(cli.ckpt_path, "--ckpt_path")
    cli.config.model.network, cli.config.model.weights = loaded.name, None
    cli.build()
    check_classes(loaded.class_names, cli.datamodule.class_names, "--ckpt_path")
    cli.model.ema.network.load_state_dict(loaded.network.state_dict())
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    results = cli.model.results
    print(json.dumps(results.as_dict()) if cli.config_init.json else results.table())
    return results


if __name__ == "__main__":
    run_command(main)
