"""Validate weights: ``python -m engine.validate --data.root data.yaml --ckpt_path CKPT [--split test] [--json]``.

The file is a checkpoint of yolofit, an Ultralytics ``.pt`` or safetensors. It names the network and the image size;
a configuration or the command line may set another image size.
"""

from __future__ import annotations

import json
import sys

from engine.command_line.cli import CommandLine
from engine.command_line.trainer_keys import explained_by_lightning
from engine.errors import ConfigError, run_command, some_of
from engine.run.checkpoint import EXAMPLE, check_classes, load_network
from engine.validation.metrics import DetectionResults


def main(args: list[str] | None = None) -> DetectionResults:
    """Print the metrics of a file's weights on the validation set; of a checkpoint, those of the averaged weights."""
    cli = CommandLine(args, writes_run=False)
    if cli.ckpt_path is None:
        raise ConfigError(f"--ckpt_path: missing: name the weights to validate, such as {EXAMPLE}")
    if cli.config.trainer.limit_val_batches == 0:
        key = "trainer.limit_val_batches"
        raise ConfigError(f"{key}: 0: there would be nothing to measure: leave it out, or set --{key} 1.0")
    loaded = load_network(cli.ckpt_path, "--ckpt_path")
    cli.build(loaded.name)
    check_classes(loaded.class_names, cli.datamodule.class_names, "--ckpt_path")
    _say_other_names(loaded.class_names, cli.datamodule.class_names)
    cli.model.ema.network.load_state_dict(loaded.network.state_dict())
    with explained_by_lightning():
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    results, split = cli.model.results, cli.config.split
    how = {
        "network": loaded.name,
        "image_size": cli.datamodule.image_size,
        "precision": cli.model.config.precision,
        "split": split,
    }
    if cli.config.json:
        print(json.dumps(how | results.as_dict()))
    else:
        images = f"{results.num_images} {split} images with {results.num_truth_C.sum()} objects"
        print(f"{cli.ckpt_path}: {loaded.name} at {how['image_size']} px in {how['precision']}: {images}")
        print(results.table())
    return results


def _say_other_names(theirs: list[str], ours: list[str]) -> None:
    other = [f"{a} is {b} here" for a, b in zip(theirs, ours, strict=True) if a != b]
    if other:
        print(f"note: {len(other)} classes have other names in the file: {some_of(other, 3)}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
