"""Train: ``python -m engine.fit --config FILE [--key value ...]``."""

from __future__ import annotations

import sys

from engine.advice import advise_before, print_advice
from engine.cli import CommandLine
from engine.errors import TrainingError, run_command
from engine.faults import explained_faults
from engine.ranks import all_present
from engine.run import CHECKPOINTS
from engine.trainer_keys import explained_by_lightning
from models.saved_weights import DOWNLOADS

RANDOM_WEIGHTS = (
    "model.weights: none: training starts from random weights; pretrained ones need far fewer images and epochs: "
    f"--model.weights FILE, such as yolo11l.pt from {DOWNLOADS}"
)


def main(args: list[str] | None = None) -> CommandLine:
    """Train as configured; returns the finished command line, for its trainer and model."""
    cli = CommandLine(args, writes_run=True).build()
    cli.save_config()
    if cli.ckpt_path is None and cli.config.model.weights is None:
        print(RANDOM_WEIGHTS, file=sys.stderr)
    print_advice(advise_before(cli.config))
    if cli.memory_ahead is not None:
        print(cli.memory_ahead)
    with explained_faults(cli.config.run.folder / CHECKPOINTS / "last.ckpt"), all_present(), explained_by_lightning():
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=True)
    if cli.checkpoint_io.failure:
        raise TrainingError(cli.checkpoint_io.failure)
    if cli.ckpt_path is not None and cli.trainer.global_step == cli.num_steps_behind:
        max_epochs = cli.config.trainer.max_epochs
        print(
            f"nothing to train: {cli.ckpt_path} is the end of its run: go on with trainer.max_epochs above {max_epochs}"
        )
    return cli


if __name__ == "__main__":
    run_command(main)
