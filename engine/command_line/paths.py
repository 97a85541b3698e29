"""Paths as people write them: ``~`` and ``$VARIABLES`` mean here what they mean to a shell.

The shell itself replaces neither in a YAML file, nor ``~`` after ``=`` in a word. Nothing is ever made in a folder
that is called ``~``.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine.errors import ConfigError

PATH_KEYS = ("run.folder", "data.root", "model.network", "model.weights", "ckpt_path", "trainer.default_root_dir")
PATH_ARGUMENTS = frozenset({"dirpath", "save_dir", "root_dir", "filename", "log_dir", "dir", "path", "tracking_uri"})
"""Arguments of callbacks, loggers and profilers that hold a path, or a name with folders in it."""


def expanded(text: str, key: str) -> str:
    """A path with the home folder and the environment's variables put in.

    Raises:
        ConfigError: If it is empty, or there is no such user or variable.
    """
    if not text.strip():
        raise ConfigError(f"{key}: is empty: give a path, or leave it out")
    path = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  Path's raises for an unknown user
    if path.startswith("~"):
        user = Path(path).parts[0]
        raise ConfigError(f"{key}: {text}: there is no user {user[1:]}: write ./{path} if a folder has that name")
    for part in Path(path).parts:
        if match := re.fullmatch(r"\$\{?(\w+)\}?", part):
            raise ConfigError(f"{key}: {text}: the environment variable {match[1]} is not set: set it, or write it out")
    return path


def expand_paths(config: Any) -> None:
    """Put home folders and variables into every path of a parsed configuration.

    Raises:
        ConfigError: See `expanded`.
    """
    for key in PATH_KEYS:
        value = config[key]
        if value is not None:
            config[key] = type(value)(expanded(str(value), key))
    for key in ("callbacks", "logger", "profiler"):
        _expand_arguments(config.trainer[key], f"trainer.{key}")


def _expand_arguments(value: Any, key: str) -> None:
    """The same in the arguments of classes, wherever they are below a key."""
    if isinstance(value, list):
        for item in value:
            _expand_arguments(item, key)
    elif isinstance(value, Namespace | dict):
        items = value if isinstance(value, dict) else vars(value)
        for name, inner in items.items():
            if name in PATH_ARGUMENTS and isinstance(inner, str | Path):
                items[name] = type(inner)(expanded(str(inner), f"{key}: {name}"))
            else:
                _expand_arguments(inner, key)
