"""Write a configuration to begin with: ``python -m engine.new DATA.yaml [--output FILE]``.

It looks at the data set and at this machine. With ``--from-command 'yolo detect train ...'``, which may also be Python
code or a file, or ``--from-args args.yaml`` it translates what an Ultralytics run was started with, key by key, and
says what each became.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from data.augmentation.augment import AugmentConfig
from data.errors import DataError
from engine.command_line.arguments import CommandParser, path_option, path_text
from engine.command_line.first_configuration import DataFacts, examine_data, render, suggest
from engine.errors import ConfigError, run_command
from engine.machine.inventory import Machine, examine_machine
from engine.migration.translate import Translation, translate
from engine.migration.ultralytics_arguments import parse_command, read_args_yaml
from engine.planning.data_section import check_sizes
from engine.training.optim import OptimizerConfig
from engine.training.schedule import ScheduleConfig
from models.detection.loss import LossGains
from models.detection.postprocess import NmsConfig

CHECKED_PARTS: dict[str, Callable[..., object]] = {
    "data.augment": AugmentConfig,
    "model.optimizer": OptimizerConfig,
    "model.schedule": ScheduleConfig,
    "model.loss": LossGains,
    "model.nms": NmsConfig,
}
"""Sections of a configuration that check their own ranges."""


def main(args: list[str] | None = None) -> None:
    """Write the configuration, and say what it is made of and what to do next.

    Raises:
        ConfigError: If an option is wrong, the file exists, or what was translated is no valid configuration.
    """
    options = _parser().parse_args(args)
    machine = examine_machine()
    translation = _translation(options, machine)
    root = translation.settings.get("data.root") if translation else options.data
    if not root:
        raise ConfigError(f"DATA.yaml: missing: {_where_data_may_be(translation)}")
    facts = _facts_if_there(root) if translation else examine_data(root)
    settings = suggest(root, facts, machine)
    if translation:
        settings |= translation.settings
    output = options.output or Path(f"{Path(root).absolute().parent.name}.yaml")
    if output.exists():
        raise ConfigError(f"--output: {output}: exists: choose another file")
    text = render(settings, facts, translation)
    _check(text, translation)
    _write(output, text)
    _tell(output, facts, machine, settings, translation)


def _translation(options: argparse.Namespace, machine: Machine) -> Translation | None:
    if options.from_command is not None:
        arguments, place = parse_command(options.from_command), "--from-command"
    elif options.from_args is not None:
        arguments, place = read_args_yaml(options.from_args), f"--from-args: {options.from_args}"
    else:
        return None
    if "device" not in arguments and not machine.gpus:
        arguments["device"] = "cpu"  # which Ultralytics takes then, and leaves amp off
    if options.data or isinstance(arguments.get("data"), str):
        arguments["data"] = str(Path(options.data or arguments["data"]).expanduser())
    facts = _facts_if_there(arguments.get("data"))
    return translate(
        arguments,
        num_classes=facts.num_classes if facts else None,
        num_images=facts.num_images if facts else None,
        is_complete=options.from_args is not None,
        place=place,
    )


def _facts_if_there(root: Any) -> DataFacts | None:
    """Facts about a data set that need not be on this machine."""
    return examine_data(root) if isinstance(root, str) and Path(root).exists() else None


def _where_data_may_be(translation: Translation | None) -> str:
    """What to do without a data set."""
    lines = translation.lines if translation else []
    if any(line.theirs.startswith("resume=") for line in lines):
        return "the arguments of the run to resume are in args.yaml in its folder: give that with --from-args"
    if any(line.theirs.startswith("data=") for line in lines):
        return "data= cannot be known without running the code: give the data.yaml before --from-command"
    return "give the data.yaml of a data set, or a command that has data="


def _write(output: Path, text: str) -> None:
    """Write the file, whole or not at all.

    Raises:
        ConfigError: If the disk refuses.
    """
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        if output.is_file():  # the first part of it
            output.unlink()
        raise ConfigError(f"--output: {output}: cannot be written ({error.strerror}): choose another file") from error


def _check(text: str, translation: Translation | None) -> None:
    """Refuse what is no configuration, before it is written.

    Raises:
        ConfigError: Naming the key and, if it was translated, what it was.
    """
    from engine.command_line.cli import CommandLine  # seconds to import

    try:
        cli = CommandLine([f"--config={text}"])
        config = cli.config
        for key, kind in CHECKED_PARTS.items():
            kind(**config[key].as_dict())
        data, network = config.data, cli.starting_network()
        check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale, network.stride_px)
    except (ConfigError, DataError, ValueError) as error:
        lines = translation.lines if translation else []
        found = ((str(error).find(key), line.theirs) for line in lines for key in line.settings)
        was = [f"{theirs}: " for position, theirs in sorted(found) if position >= 0][:1]  # of the key with the mistake
        raise ConfigError(f"{''.join(was)}{error}") from error


def _tell(
    output: Path,
    facts: DataFacts | None,
    machine: Machine,
    settings: Mapping[str, Any],
    translation: Translation | None,
) -> None:
    console = Console(highlight=False)
    if facts:
        console.print(Text(f"data: {facts.text(settings['data.image_size'])}"), soft_wrap=True)
    else:
        root = settings["data.root"]
        missing = f"data.root: {root}: is not here, so images and labels were not looked at: put it there, or change it"
        console.print(Text(missing, style="yellow"), soft_wrap=True)
    names = ", ".join(gpu.name for gpu in machine.gpus)
    is_for_gpu = settings["trainer.accelerator"] == "gpu"
    bare = f"none here: the configuration is for {'a machine that has one' if is_for_gpu else 'a CPU'}"
    console.print(Text(f"GPU: {names or bare}"), soft_wrap=True)
    for line in translation.lines if translation else ():
        text = Text(f"{line.theirs:20} ", style="bold")
        text.append(f"-> {line.text()}", style="green" if line.settings else "yellow")
        text.append(f"  ({line.remark})" if line.remark else "", style="none")
        console.print(text, soft_wrap=True)
    console.print(Text(f"written: {output}"), soft_wrap=True)
    remarks = (("doctor", "what this machine lacks"), ("plan", "the memory it will need"), ("fit", "train"))
    for command, remark in remarks:
        shown = shlex.quote(str(output))
        console.print(Text(f"next: python -m engine.{command} --config {shown}  # {remark}"), soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m engine.new", description="Write a configuration to begin with.")
    parser.add_argument(
        "data",
        metavar="DATA.yaml",
        nargs="?",
        type=path_text("DATA.yaml"),
        help="description of the data set; only read",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=path_option("--output"), help="default: named after the data set's folder"
    )
    source = parser.add_mutually_exclusive_group()
    about = "translate an Ultralytics command or Python call: its text, or a file with it; nothing of it is run"
    source.add_argument("--from-command", metavar="'yolo ...'", help=about)
    source.add_argument(
        "--from-args", metavar="args.yaml", type=path_option("--from-args"), help="translate an Ultralytics args.yaml"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
