"""Plan the VRAM of training, without a GPU: ``python -m engine.plan [--config FILE] [--budget 16GiB] [--json]``.

A table says what each micro-batch, image size, precision and recompute level needs; below it stands the fastest
combination that fits the budget, as keys of a configuration. With the options of ``engine.fit``, such as
``--config FILE``, it plans for that configuration, else for YOLO11l. The exit status is 2 if nothing fits.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from rich.console import Console

from engine.command_line.arguments import CommandParser
from engine.errors import ConfigError, config_key, run_command
from engine.machine.devices import count_devices
from engine.memory.allocator import resolve_budget
from engine.memory.config import MemoryConfig
from engine.memory.units import GIB, format_bytes, parse_bytes
from engine.planning.choose import Plan, PlanRow, Recommendation, margin_of, verdict_of
from engine.planning.data_section import check_sizes
from engine.planning.predict import predict, recommend
from engine.planning.settle import spec_of
from engine.planning.simulation import StepSpec
from engine.planning.table import advice, legend, table
from engine.training.precision import Precision
from models.recompute.levels import Level

DEFAULT_BUDGET_BYTES = 16 * GIB
DEFAULT_BATCH_SIZE = 32
DEFAULT_MICRO_BATCHES = [16, 32]
DEFAULT_IMAGE_SIZES = [640, 800]


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    spec: StepSpec
    budget_bytes: int
    batch_size: int
    """Images of an optimizer step on one device."""
    num_devices: int
    micro_batches: list[int]
    image_sizes: list[int]
    """The recommendation is for the first."""
    configured: tuple[int, Level] | None = None
    """Micro-batch and recompute level that the configuration has now."""
    notes: tuple[str, ...] = ()
    """What had to be assumed."""


def main(args: list[str] | None = None) -> None:
    """Print the plan.

    Raises:
        ConfigError: If nothing fits, after the table; or if an option is wrong.
    """
    options, config_args = _parser().parse_known_args(args)
    question = _question(options, config_args)
    if options.json:
        print(json.dumps(as_json(make_plan(question)), indent=2))
        return
    console = Console(highlight=False, markup=False)  # brackets in a path are not ours
    console.print(_about(question), "", sep="\n")
    console.print(table(table_rows(question)), legend(question.budget_bytes), "", sep="\n")
    recommended = _recommend(question)
    console.print(advice(recommended, question.budget_bytes, question.batch_size * question.num_devices))


def make_plan(question: Question) -> Plan:
    """Table and recommendation.

    Raises:
        ConfigError: If nothing fits.
    """
    budget_bytes = question.budget_bytes
    return Plan(budget_bytes, margin_of(budget_bytes), tuple(table_rows(question)), _recommend(question))


def table_rows(question: Question) -> list[PlanRow]:
    """A row for each image size, micro-batch, precision and recompute level."""
    rows = []
    for image_size in question.image_sizes:
        for micro_batch in question.micro_batches:
            for precision in get_args(Precision):
                spec = replace(question.spec, image_size=image_size, precision=precision)
                for level in get_args(Level):
                    rows.append(_row(question, spec, micro_batch, level))
    return rows


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; ``recompute_layers`` is there only for a mixture of levels."""
    keys = ("micro_batch", "accumulate", "recompute", "precision", "peak_bytes")
    recommended = {key: getattr(plan.recommended, key) for key in keys}
    if plan.recommended.recompute_layers:
        recommended["recompute_layers"] = plan.recommended.layer_levels
    rows = [asdict(row) for row in plan.rows]
    return {"budget_bytes": plan.budget_bytes, "rows": rows, "recommended": recommended}


def _row(question: Question, spec: StepSpec, micro_batch: int, level: Level) -> PlanRow:
    components = predict(spec, _largest(question), level, micro_batch, micro_batch < question.batch_size)
    peak_bytes = sum(components.values())
    return PlanRow(
        micro_batch=micro_batch,
        image_size=spec.image_size,
        precision=spec.precision,
        recompute=level,
        peak_bytes=peak_bytes,
        components=components,
        verdict=verdict_of(peak_bytes, question.budget_bytes),
    )


def _about(question: Question) -> str:
    spec = question.spec
    lines = [
        f"{spec.network}, {spec.num_classes} classes, {spec.boxes_per_image} boxes an image, {spec.optimizer.name}; "
        f"{question.batch_size} images an optimizer step"
        + (f" on each of {question.num_devices} devices" if question.num_devices > 1 else ""),
        *question.notes,
    ]
    if question.configured is not None:
        micro_batch, level = question.configured
        if micro_batch <= _largest(question):
            row = _row(question, replace(spec, image_size=question.image_sizes[0]), micro_batch, level)
            lines.append(
                f"as configured (micro-batch {micro_batch}, {spec.precision}, {level}): "
                f"{format_bytes(row.peak_bytes)}, {row.verdict}"
            )
    return "\n".join(lines)


def _largest(question: Question) -> int:
    return max(question.batch_size, *question.micro_batches)


def _recommend(question: Question) -> Recommendation:
    spec = replace(question.spec, image_size=question.image_sizes[0])
    return recommend(spec, question.budget_bytes, question.batch_size, largest=_largest(question))


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
    for image_size in image_sizes:
        if image_size % 32:
            raise ConfigError(f"--image-size: {image_size}: must be a multiple of 32")
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


def default_question() -> Question:
    """The well-known table: YOLO11l, 32 images a step, 16 GiB."""
    return Question(
        spec=StepSpec(),
        budget_bytes=DEFAULT_BUDGET_BYTES,
        batch_size=DEFAULT_BATCH_SIZE,
        num_devices=1,
        micro_batches=DEFAULT_MICRO_BATCHES,
        image_sizes=DEFAULT_IMAGE_SIZES,
    )


def _configured_question(args: list[str]) -> Question:
    from engine.command_line.cli import CommandLine  # seconds to import, and not needed for the default table

    config = CommandLine(args).config
    data = config.data
    check_sizes(data.batch_size, data.micro_batch_size, data.image_size, data.multi_scale)
    spec, notes = spec_of(config)
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
    """The budget that a run with this key would have here; without a GPU, a size or the default."""
    if torch.cuda.is_available():
        return resolve_budget(MemoryConfig(budget=budget), torch.device("cuda", torch.cuda.current_device()))
    try:
        return parse_bytes(str(budget))
    except ValueError:  # auto, or a fraction of a GPU that is not here
        return DEFAULT_BUDGET_BYTES


if __name__ == "__main__":
    run_command(main)
