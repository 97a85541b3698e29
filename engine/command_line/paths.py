"""Paths with ``~`` and ``$VARIABLES``, which mean the same as in a shell.

A shell replaces neither in a YAML file, nor ``~`` after ``=``. No folder with the name ``~`` is ever made.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from engine.errors import ConfigError

PATH_KEYS = ("run.folder", "data.root", "model.network", "model.weights", "ckpt_path", "trainer.default_root_dir")
PATH_ARGUMENTS = frozenset({"dirpath", "save_dir", "root_dir", "filename", "log_dir", "dir", "path", "tracking_uri"})
"""Arguments of callbacks, loggers and profilers that hold a path, or a file name with folders."""


def expanded(text: str, key: str) -> str:
    """Replace the home folder and environment variables in a path.

    Raises:
        ConfigError: If the path is empty, or the user or variable does not exist.
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


def expand_paths(config: Namespace) -> Namespace:
    """Return a copy of a parsed configuration in which home folders and variables are replaced in every path.

    Raises:
        ConfigError: See `expanded`.
    """
    config = config.clone()
    for key in PATH_KEYS:
        value = config[key]
        if value is not None:
            config[key] = type(value)(expanded(str(value), key))
    for key in ("callbacks", "logger", "profiler"):
        _expand_arguments(config.trainer[key], f"trainer.{key}")
    return config


def _expand_arguments(value: Any, key: str) -> None:
    """Expand the arguments of classes at any depth below a key, in place."""
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
