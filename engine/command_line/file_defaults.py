"""What a file of weights says of itself stands in for the keys that nobody gives: its network and its image size.

So ``--ckpt_path best.ckpt`` alone measures, resumes or plans as the file was trained. Keys in a configuration or on the
command line win; one line says so where they differ.
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
"""Prints and ends in parsing, so only the second time, when the defaults are right."""


def parse_with_file(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse a command line of ``engine.fit`` and its like, with the defaults of the file that it names, if any."""
    without_file = parser.parse_args([word for word in words if not word.startswith(PRINTING)])
    file = without_file.ckpt_path or without_file.model.weights
    said = said_by(file) if file else {}
    parser.set_defaults(said)
    config = parser.parse_args(words)
    for line in _differences(said, file, without_file, config):
        rank_zero_only(print)(line, file=sys.stderr)
    return config


def said_by(file: Path) -> dict[str, Any]:
    """The keys that a file of weights has a value for; none if it cannot be read, which is said when it is used."""
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
