"""Options of the commands without a configuration: argparse with errors in one line and no abbreviations."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from engine.command_line.paths import expanded
from engine.errors import ConfigError
from engine.run.checkpoint import EXAMPLE
from models.detection.postprocess import NmsConfig


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError instead of printing its usage and exiting."""

    def __init__(self, **kwargs: Any) -> None:
        """Accept only complete option names: an abbreviation may be an option of another command."""
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; unknown options are reported before missing ones.

        Raises:
            ConfigError: With all unknown options.
        """
        known = [option for action in self._actions for option in action.option_strings]
        names = [word.partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        wrong = [name for name in names if name.startswith("--") and name not in known]
        if wrong:
            raise ConfigError("; ".join(self._unknown(name, known) for name in wrong))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            ConfigError: With the option, what is wrong, and the option that may have been meant.
        """
        if match := re.match(r"argument (\S+?)(?:/\S+)?: (?:invalid (\w+) value: '(.*)'|(.*))", message):
            raise ConfigError(f"{match[1]}: {f'{match[3]}: expected {match[2]}' if match[2] else match[4]}")
        if match := re.match(r"the following arguments are required: (.+)", message):
            raise ConfigError(f"{match[1]}: missing: {self.format_usage()}")
        if match := re.match(r"unrecognized arguments: (.+)", message):
            raise ConfigError(f"{match[1]}: belongs to no option: {self.format_usage()}")
        raise ConfigError(message)

    def format_usage(self) -> str:
        """Return the usage in one line."""
        return " ".join(super().format_usage().split()).removeprefix("usage: ")

    def _unknown(self, word: str, options: list[str]) -> str:
        near = difflib.get_close_matches(f"--{word.lstrip('-')}", options, n=1)
        return f"{word}: no such option: {f'did you mean {near[0]}?' if near else 'see --help'}"


def path_option(name: str) -> Callable[[str], Path]:
    """Return the type of an option that is a path (`engine.command_line.paths.expanded`)."""
    return lambda text: Path(expanded(text, name))


def path_text(name: str) -> Callable[[str], str]:
    """Return the type of an option whose path stays text, such as a pattern."""
    return lambda text: expanded(text, name)


def add_checkpoint_option(parser: CommandParser) -> None:
    """Add ``--ckpt_path``, the weights to use."""
    about = f"such as {EXAMPLE}; or an Ultralytics .pt"
    parser.add_argument("--ckpt_path", type=path_option("--ckpt_path"), required=True, help=about)


def add_nms_options(parser: CommandParser, condition: str = "") -> None:
    """Add the options of non-maximum suppression; ``condition`` begins their help."""
    score, overlap, most = "least score", "largest overlap of two boxes", "most boxes in an image"
    end = "; default: %(default)s"
    parser.add_argument("--conf", type=float, default=0.25, help=f"{condition}{score}{end}")
    parser.add_argument("--iou", type=float, default=NmsConfig.iou, help=f"{condition}{overlap}{end}")
    parser.add_argument("--max_detections", type=int, default=1000, help=f"{condition}{most}{end}")


def nms_config(options: argparse.Namespace, multi_label: bool = NmsConfig.multi_label) -> NmsConfig:
    """Read the options of `add_nms_options`.

    Raises:
        ConfigError: If one is out of range.
    """
    try:
        return NmsConfig(options.conf, options.iou, multi_label, max_detections=options.max_detections)
    except ValueError as error:
        raise ConfigError(str(error).replace("model.nms.confidence", "--conf").replace("model.nms.", "--")) from error
