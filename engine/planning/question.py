"""What is to be planned, and the table and the recommendation that answer it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from engine.memory.units import GIB, format_bytes
from engine.planning.choose import Plan, PlanRow, Recommendation, margin_of, verdict_of
from engine.planning.predict import predict, recommend
from engine.planning.simulation import StepSpec
from engine.training.config import ModelConfig
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


def default_question() -> Question:
    """The well-known table: YOLO11l, 32 images a step, 16 GiB."""
    return Question(
        spec=StepSpec(ModelConfig(precision="fp16")),
        budget_bytes=DEFAULT_BUDGET_BYTES,
        batch_size=DEFAULT_BATCH_SIZE,
        num_devices=1,
        micro_batches=DEFAULT_MICRO_BATCHES,
        image_sizes=DEFAULT_IMAGE_SIZES,
    )


def make_plan(question: Question) -> Plan:
    """Table and recommendation.

    Raises:
        ConfigError: If nothing fits.
    """
    budget_bytes = question.budget_bytes
    return Plan(budget_bytes, margin_of(budget_bytes), tuple(table_rows(question)), recommendation(question))


def table_rows(question: Question) -> list[PlanRow]:
    """A row for each image size, micro-batch, precision and recompute level."""
    rows = []
    for image_size in question.image_sizes:
        for micro_batch in question.micro_batches:
            for precision in get_args(Precision):
                spec = question.spec.at(image_size, precision)
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
        precision=spec.model.precision,
        recompute=level,
        peak_bytes=peak_bytes,
        components=components,
        verdict=verdict_of(peak_bytes, question.budget_bytes),
    )


def about(question: Question) -> str:
    """What is planned, what had to be assumed, and what the configuration needs as it is."""
    spec = question.spec
    lines = [
        f"{spec.model.network}, {spec.num_classes} classes, {spec.boxes_per_image} boxes an image, "
        f"{spec.model.optimizer.name}; {question.batch_size} images an optimizer step"
        + (f" on each of {question.num_devices} devices" if question.num_devices > 1 else ""),
        *question.notes,
    ]
    if question.configured is not None:
        micro_batch, level = question.configured
        if micro_batch <= _largest(question):
            row = _row(question, replace(spec, image_size=question.image_sizes[0]), micro_batch, level)
            lines.append(
                f"as configured (micro-batch {micro_batch}, {spec.model.precision}, {level}): "
                f"{format_bytes(row.peak_bytes)}, {row.verdict}"
            )
    return "\n".join(lines)


def _largest(question: Question) -> int:
    return max(question.batch_size, *question.micro_batches)


def recommendation(question: Question) -> Recommendation:
    """The fastest combination at the first image size.

    Raises:
        ConfigError: If nothing fits.
    """
    spec = replace(question.spec, image_size=question.image_sizes[0])
    return recommend(spec, question.budget_bytes, question.batch_size, largest=_largest(question))
