"""Plan the VRAM of training without a GPU: ``python -m engine.plan [--config FILE] [--budget 16GiB] [--json]``.

A table shows the peak of each micro-batch, image size, precision and recompute level. Below it stands the fastest
combination within the budget, as keys of a configuration. With the options of ``engine.fit``, such as
``--config FILE``, it plans for that configuration, else for YOLO11l. The exit status is 2 if nothing fits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import get_args

import torch
from rich.console import Console

from engine.command_line.arguments import CommandParser
from engine.errors import ConfigError, config_key, run_command
from engine.machine.devices import count_devices
from engine.memory.allocator import resolve_budget
from engine.memory.config import MemoryConfig
from engine.memory.units import parse_bytes
from engine.planning.data_section import check_image_size, check_sizes
from engine.planning.question import (
    DEFAULT_BUDGET_BYTES,
    Question,
    about,
    as_json,
    default_question,
    recommendation,
    table_rows,
)
from engine.planning.settle import spec_of
from engine.planning.simulation import network_on_meta
from engine.planning.table import advice, legend, table
from models.recompute.levels import Level


def main(args: list[str] | None = None) -> None:
    """Print the plan.

    Raises:
        ConfigError: If an option is wrong; after the table, if nothing fits.
    """
    options, config_args = _parser().parse_known_args(args)
    question = _question(options, config_args)
    if options.json:
        print(json.dumps(as_json(question), indent=2))
        return
    console = Console(highlight=False, markup=False)  # a path may have brackets
    console.print(about(question), "", sep="\n")
    console.print(table(table_rows(question)), legend(question.budget_bytes), "", sep="\n")
    recommended = recommendation(question)
    console.print(advice(recommended, question.budget_bytes, question.batch_size * question.num_devices))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m engine.plan",
        description="Plan the VRAM of training, without a GPU.",
        epilog="All options of engine.fit, such as --config FILE or --model.network yolo11s, say what is planned.",
    )
    budget = "most VRAM to use (default: the configuration's, else what the GPU here has free, else 16GiB)"
    batch = "micro-batches of the table (default: 16,32, or the effective batch, a half and a quarter of it)"
    size = "image sizes of the table, the first one for the recommendation (default: the configuration's, else 640,800)"
    boxes = "ground-truth boxes of every image (default: those of the data set's worst mosaic, else 50)"
    parser.add_argument("--budget", metavar="SIZE", help=budget)
    parser.add_argument("--batch", metavar="N,N", help=batch)
    parser.add_argument("--image-size", metavar="N,N", help=size)
    parser.add_argument("--boxes-per-image", metavar="N", type=int, help=boxes)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _question(options: argparse.Namespace, config_args: list[str]) -> Question:
    question = _configured_question(config_args) if config_args else default_question()
    spec = question.spec
    if options.boxes_per_image is not None:
        if options.boxes_per_image < 1:
            raise ConfigError(f"--boxes-per-image: {options.boxes_per_image}: must be at least 1")
        spec = replace(spec, boxes_per_image=options.boxes_per_image)
    budget_bytes = question.budget_bytes
    if options.budget:
        with config_key("--budget"):
            budget_bytes = parse_bytes(options.budget)
    image_sizes = _numbers("--image-size", options.image_size, question.image_sizes)
    step_px = network_on_meta(spec.network, spec.num_classes).step_px
    for image_size in image_sizes:
        check_image_size(image_size, step_px, "--image-size")
    return replace(
        question,
        spec=spec,
        budget_bytes=budget_bytes,
        micro_batches=_numbers("--batch", options.batch, question.micro_batches),
        image_sizes=image_sizes,
    )


def _numbers(option: str, text: str | None, default: list[int]) -> list[int]:
    if text is None:
        return default
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option}: {text}: must be whole numbers above 0 with commas between, such as 16,32")
    return list(dict.fromkeys(int(word) for word in words))


def _configured_question(args: list[str]) -> Question:
    from engine.command_line.cli import CommandLine  # takes seconds to import; the default table does not need it

    cli = CommandLine(args)
    config, data, network = cli.config, cli.config.data, cli.starting_network()
    check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale, network.stride_px)
    spec, notes = spec_of(config, *network)
    num_devices = count_devices(config.trainer)
    batch_size = -(-config.data.batch_size // num_devices)
    configured = (config.data.micro_batch_size, config.model.recompute)
    is_plain = isinstance(configured[0], int) and configured[1] in get_args(Level)
    return Question(
        spec=spec,
        budget_bytes=_configured_budget(config.get("memory.budget", "auto")),
        batch_size=batch_size,
        num_devices=num_devices,
        micro_batches=sorted({-(-batch_size // parts) for parts in (4, 2, 1)}),
        image_sizes=[spec.image_size],
        configured=configured if is_plain else None,
        notes=notes,
    )


def _configured_budget(budget: str | float) -> int:
    """Return the budget that a run would have here in bytes; without a GPU the configured size, or the default."""
    if torch.cuda.is_available():
        return resolve_budget(MemoryConfig(budget=budget), torch.device("cuda", torch.cuda.current_device()))
    try:
        return parse_bytes(str(budget))
    except ValueError:  # auto, or a fraction of a GPU that is not here
        return DEFAULT_BUDGET_BYTES


if __name__ == "__main__":
    run_command(main)
