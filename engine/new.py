"""Write a configuration to begin with: ``python -m engine.new DATA.yaml [--output FILE]``.

It looks at the data set and at this machine. With ``--from-command 'yolo detect train ...'``, which may also be Python
code or a file, or ``--from-args args.yaml`` it translates what an Ultralytics run was started with, key by key, and
says what each became.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from data.augmentation.augment import AugmentConfig
from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from engine.command_line.arguments import CommandParser, path_option, path_text
from engine.errors import ConfigError, run_command
from engine.machine.diagnosis import BF16_CAPABILITY
from engine.machine.inventory import Machine, examine_machine
from engine.migration.translate import Translation, plain, translate
from engine.migration.ultralytics_arguments import parse_command, read_args_yaml
from engine.planning.data_section import check_sizes
from engine.training.optim import OptimizerConfig
from engine.training.schedule import ScheduleConfig
from models.detection.loss import LossGains
from models.detection.postprocess import NmsConfig

IMAGE_SIZES = (640, 800, 960, 1280)
MIN_SIDE_PX = 8
"""Sides of most boxes must be this long in the network's input: it has one place for an object every 8 px."""
SMALL_BOX_QUANTILE = 0.1
BATCH_SIZES = (32, 16, 8, 4)
MIN_STEPS_PER_EPOCH = 8
COMMENTS = {
    "run.folder": "receives everything; -2, -3, ... is appended if it is taken",
    "run.patience": "epochs without a better mAP50-95 after which training stops",
    "data.root": "only read, never written to",
    "data.image_size": "side of the network's input in pixels; memory grows with its square",
    "data.batch_size": "images per optimizer step: what the learning rate is chosen for",
    "data.micro_batch_size": "images on the device at a time: planned at the start, so that the budget is kept",
    "model.network": "yolo11n, s, m, l or x",
    "model.weights": "pretrained weights to start from",
    "model.precision": "bf16 and fp16 halve the activations, which are over 95 % of the memory",
    "model.recompute": "what backward computes again instead of keeping: planned with the micro-batch",
    "model.optimizer.lr": "after warm-up",
    "memory.budget": "most VRAM to use: auto (what is free), a size such as 14GiB, or a share such as 0.9",
    "trainer.accelerator": "gpu or cpu",
    "trainer.devices": "a number of devices, or a list of theirs",
    "trainer.max_epochs": "the learning rate falls over so many",
}
CHECKED_PARTS: dict[str, Callable[..., object]] = {
    "data.augment": AugmentConfig,
    "model.optimizer": OptimizerConfig,
    "model.schedule": ScheduleConfig,
    "model.loss": LossGains,
    "model.nms": NmsConfig,
}
"""Sections of a configuration that check their own ranges."""
GROUP_ORDER = ("seed_everything", "run", "data", "model", "memory", "trainer")


@dataclass(frozen=True)
class DataFacts:
    """What a configuration depends on."""

    num_images: int
    num_boxes: int
    num_classes: int
    small_side_rel: float
    """Nine of ten boxes have a longer shorter side, in parts of the image's long side."""
    long_side_px: int
    """Of the usual image."""

    @property
    def image_size(self) -> int:
        """The smallest usual size at which small boxes can be told apart; not above that of the pictures."""
        sizes = [size for size in IMAGE_SIZES if size <= max(self.long_side_px, IMAGE_SIZES[0])]
        return next((size for size in sizes if size * self.small_side_rel >= MIN_SIDE_PX), sizes[-1])

    @property
    def batch_size(self) -> int:
        """The largest usual batch that leaves some steps in an epoch."""
        return next((size for size in BATCH_SIZES if self.num_images >= MIN_STEPS_PER_EPOCH * size), BATCH_SIZES[-1])

    def text(self, image_size_px: int) -> str:
        """In one line, as it is at an image size."""
        side_px = self.small_side_rel * image_size_px
        return (
            f"{self.num_images:,} training images, {self.num_boxes:,} boxes, {self.num_classes} classes; "
            f"a tenth of the boxes is under {side_px:.0f} px wide or high at {image_size_px} px"
        )


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


def examine_data(root: str | Path) -> DataFacts:
    """Read what matters of a data set: its labels, and the sizes of its images, upright.

    Raises:
        DataError: If it is not in order.
    """
    dataset = read_dataset_yaml(root)
    index = build_index(dataset, "train")
    sides_hw = index.sizes_hw
    longest = sides_hw.max(axis=1, keepdims=True)
    shape = np.median(sides_hw / longest, axis=0)  # a box's height and width in parts of the long side
    sizes = (index.boxes_xyxy_rel[:, 2:] - index.boxes_xyxy_rel[:, :2])[:, ::-1] * shape
    return DataFacts(
        num_images=len(index),
        num_boxes=len(index.classes),
        num_classes=dataset.num_classes,
        small_side_rel=float(np.quantile(sizes.min(axis=1), SMALL_BOX_QUANTILE)) if len(sizes) else 1.0,
        long_side_px=int(np.median(longest)),
    )


def suggest(root: str | Path, facts: DataFacts | None, machine: Machine) -> dict[str, Any]:
    """Settings for a data set on this machine, by key."""
    on_gpu = bool(machine.gpus)
    precision = "bf16" if on_gpu and machine.gpus[0].capability >= BF16_CAPABILITY else "fp16"
    return {
        "run.folder": f"runs/{Path(root).absolute().parent.name}",
        "data.root": str(root),
        "data.image_size": facts.image_size if facts else IMAGE_SIZES[0],
        "data.batch_size": facts.batch_size if facts else BATCH_SIZES[0],
        "data.micro_batch_size": "auto",
        "model.network": "yolo11l" if on_gpu else "yolo11n",
        "model.precision": precision if on_gpu else "fp32",
        "model.recompute": "auto",
        "memory.budget": "auto",
        "trainer.accelerator": "gpu" if on_gpu else "cpu",
        "trainer.max_epochs": 100,
    }


def render(settings: Mapping[str, Any], facts: DataFacts | None, translation: Translation | None = None) -> str:
    """The YAML file: settings by section, each with what it means or was; and what was left out."""
    translated = translation.lines if translation else []
    with_remarks = (line for line in translated if line.settings and line.remark)
    comments = COMMENTS | {next(iter(line.settings)): line.comment() for line in with_remarks}
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    lines = [f"# {facts.text(settings['data.image_size'])}."] if facts else []
    lines += ["# Differences from the defaults; --help explains every key, --print_config shows all values."]
    lines += [f"# {line.comment()}" for line in translated if not line.settings]
    for group in sorted(tree, key=lambda name: GROUP_ORDER.index(name) if name in GROUP_ORDER else len(GROUP_ORDER)):
        lines += [*([""] if isinstance(tree[group], dict) else []), *_render(group, tree[group], group, comments)]
    return "\n".join(lines) + "\n"


def _render(name: str, value: Any, key: str, comments: Mapping[str, str]) -> list[str]:
    indent = "  " * key.count(".")
    if isinstance(value, dict):
        inner = [line for child, below in value.items() for line in _render(child, below, f"{key}.{child}", comments)]
        return [f"{indent}{name}:", *inner]
    line = f"{indent}{name}: {plain(value)}"
    return [f"{line}  # {comments[key]}" if key in comments else line]


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
        config = CommandLine([f"--config={text}"]).config
        for key, kind in CHECKED_PARTS.items():
            kind(**config[key].as_dict())
        data = config.data
        check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale)
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
