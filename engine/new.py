"""Write a first configuration: ``python -m engine.new DATA.yaml [--output FILE]``.

It suits the data set and this machine. ``--from-command 'yolo detect train ...'`` translates an Ultralytics command,
Python code, or a file with either, key by key, and shows what each key became. ``--from-args args.yaml`` translates
the arguments of an Ultralytics run.
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
"""Sections of a configuration whose classes check their own ranges."""


def main(args: list[str] | None = None) -> None:
    """Write the configuration; print what it is based on and what to do next.

    Raises:
        ConfigError: If an option is wrong, the file exists, or the translation is no valid configuration.
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
        arguments["device"] = "cpu"  # Ultralytics does the same, and then ignores amp
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
    """Examine a data set; return None if it is not on this machine."""
    return examine_data(root) if isinstance(root, str) and Path(root).exists() else None


def _where_data_may_be(translation: Translation | None) -> str:
    """Say what to do without a data set."""
    lines = translation.lines if translation else []
    if any(line.theirs.startswith("resume=") for line in lines):
        return "the arguments of the run to resume are in args.yaml in its folder: give that with --from-args"
    if any(line.theirs.startswith("data=") for line in lines):
        return "data= cannot be known without running the code: give the data.yaml before --from-command"
    return "give the data.yaml of a data set, or a command that has data="


def _write(output: Path, text: str) -> None:
    """Write the file completely or not at all.

    Raises:
        ConfigError: If the disk refuses.
    """
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        if output.is_file():  # a part was written
            output.unlink()
        raise ConfigError(f"--output: {output}: cannot be written ({error.strerror}): choose another file") from error


def _check(text: str, translation: Translation | None) -> None:
    """Check the configuration before it is written.

    Raises:
        ConfigError: With the key, and the Ultralytics argument that it was translated from.
    """
    from engine.command_line.cli import CommandLine  # takes seconds to import

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
        was = [f"{theirs}: " for position, theirs in sorted(found) if position >= 0][:1]  # the key of the mistake
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
        missing = (
            f"data.root: {root}: is missing, so images and labels were not examined: put it there, or change the key"
        )
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
    if translation and not any("model.network" in line.settings for line in translation.lines):
        network = settings["model.network"]
        chosen = f"model.network: {network}: is in the file, because the command names no network to use"
        console.print(Text(f"{chosen}: change the key to train another one", style="yellow"), soft_wrap=True)
    console.print(Text(f"written: {output}"), soft_wrap=True)
    remarks = (("doctor", "what this machine lacks"), ("plan", "the memory it will need"), ("fit", "train"))
    for command, remark in remarks:
        shown = shlex.quote(str(output))
        console.print(Text(f"next: python -m engine.{command} --config {shown}  # {remark}"), soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m engine.new", description="Write a configuration to begin with.")
    about = "description of the data set; only read"
    parser.add_argument("data", metavar="DATA.yaml", nargs="?", type=path_text("DATA.yaml"), help=about)
    about = "default: named after the data set's folder"
    parser.add_argument("--output", metavar="FILE", type=path_option("--output"), help=about)
    source = parser.add_mutually_exclusive_group()
    about = "translate an Ultralytics command or Python call: its text, or a file with it; nothing of it is run"
    source.add_argument("--from-command", metavar="'yolo ...'", help=about)
    about = "translate an Ultralytics args.yaml"
    source.add_argument("--from-args", metavar="args.yaml", type=path_option("--from-args"), help=about)
    return parser


if __name__ == "__main__":
    run_command(main)
