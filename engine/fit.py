"""Train: ``python -m engine.fit --config FILE [--key value ...]``."""

from __future__ import annotations

import sys

from engine.command_line.cli import CommandLine
from engine.command_line.trainer_keys import explained_by_lightning
from engine.errors import TrainingError, run_command
from engine.loop.advice import advise_before, print_advice
from engine.loop.processes import beginning_together, speaking_once
from engine.run.faults import explained_faults
from engine.run.folder import CHECKPOINTS, LAST
from engine.training.ranks import all_present
from models.weights.saved_weights import DOWNLOADS

RANDOM_WEIGHTS = (
    "model.weights: none: training starts from random weights; pretrained ones need far fewer images and epochs: "
    f"--model.weights FILE, such as yolo11l.pt from {DOWNLOADS}"
)


def main(args: list[str] | None = None) -> CommandLine:
    """Train as configured; return the finished command line, which holds trainer and model."""
    with beginning_together():
        cli = CommandLine(args, writes_run=True).build()
        cli.save_config()
    if cli.trainer.is_global_zero:
        if cli.ckpt_path is None and cli.config.model.weights is None:
            print(RANDOM_WEIGHTS, file=sys.stderr)
        print_advice(advise_before(cli.config, cli.model.stride_px))
        if cli.memory_ahead is not None:
            print(cli.memory_ahead)
    last = cli.config.run.folder / CHECKPOINTS / LAST
    with speaking_once(cli.trainer.strategy), explained_faults(last), all_present(), explained_by_lightning():
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=True)
    for failure in cli.checkpoint_io.failures.values():
        raise TrainingError(failure)
    if cli.ckpt_path is not None and not cli.trainer.callback_metrics:  # any epoch or validation would have some
        limit = "a larger trainer.max_steps, trainer.max_time or run.patience"
        if not cli.trainer.should_stop:
            limit = f"trainer.max_epochs above {cli.config.trainer.max_epochs}"
        print(f"nothing to train: {cli.ckpt_path} is the end of its run: resume with {limit}")
    return cli


if __name__ == "__main__":
    run_command(main)
