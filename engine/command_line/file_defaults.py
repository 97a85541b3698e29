"""Defaults from a file of weights: its network and image size replace the defaults of keys that nobody gives.

So ``--ckpt_path best.ckpt`` alone validates, resumes or plans as the file was trained. Keys in a configuration or on
the command line win; one line names each difference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_only

from engine.run.checkpoint import network_in
from models.weights.saved_weights import WeightsError, read_weights

PRINTING = "--print_config"
"""The parser prints and exits at this option, so it is left out until the defaults are right."""


def parse_with_file(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse a command line with the defaults of the file of weights that it names, if any."""
    without_file = parser.parse_args([word for word in words if not word.startswith(PRINTING)])
    file = without_file.ckpt_path or without_file.model.weights
    said = said_by(file) if file else {}
    parser.set_defaults(said)
    config = parser.parse_args(words)
    for line in _differences(said, file, without_file, config):
        rank_zero_only(print)(line, file=sys.stderr)
    return config


def said_by(file: Path) -> dict[str, Any]:
    """Return the keys for which a file of weights has a value; none if it cannot be read: its use reports the error."""
    try:
        saved = read_weights(file.expanduser())
    except WeightsError:
        return {}
    said = {"model.network": network_in(saved), "data.image_size": saved.image_size}
    return {key: value for key, value in said.items() if value is not None}


def _differences(said: dict[str, Any], file: Path | None, without_file: Namespace, config: Namespace) -> Iterator[str]:
    taken = [f"{key} {value}" for key, value in said.items() if config[key] == value != without_file[key]]
    if taken:
        yield f"note: as in {file}: {', '.join(taken)}"
    for key, value in said.items():
        if config[key] != value:
            yield f"note: {key} is {config[key]} here, {value} in {file}"
