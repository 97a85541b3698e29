"""Validate a checkpoint: ``python -m engine.validate --config FILE --ckpt_path CKPT [--json]``."""

from __future__ import annotations

import json

from engine.checkpoint import EXAMPLE, check_network, read_checkpoint
from engine.cli import CommandLine
from engine.errors import ConfigError, run_command
from engine.metrics import DetectionResults


def main(args: list[str] | None = None) -> DetectionResults:
    """Print the metrics of a checkpoint's averaged weights on the validation set."""
    cli = CommandLine(args, writes_run=False).build()
    if cli.ckpt_path is None:
        raise ConfigError(f"--ckpt_path: missing: name the checkpoint to validate, such as {EXAMPLE}")
    check_network(read_checkpoint(cli.ckpt_path, "--ckpt_path"), cli.model.description, "--ckpt_path")
    cli.trainer.validate(
        cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, verbose=False, weights_only=True
    )
    results = cli.model.results
    print(json.dumps(results.as_dict()) if cli.config_init.json else results.table())
    return results


if __name__ == "__main__":
    run_command(main)
