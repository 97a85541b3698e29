"""What to plan for `engine.plan`, with the table and the recommendation that answer it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from engine.memory.units import GIB, format_bytes
from engine.planning.choose import PlanRow, Recommendation, verdict_of
from engine.planning.predict import predict, recommend
from engine.planning.simulation import StepSpec
from engine.training.config import ModelConfig
from engine.training.precision import Precision
from models.recompute.levels import Level

DEFAULT_BUDGET_BYTES = 16 * GIB


@dataclass(frozen=True)
class Question:
    """What to plan."""

    spec: StepSpec
    budget_bytes: int
    batch_size: int
    """Images of an optimizer step on one device."""
    num_devices: int
    micro_batches: list[int]
    image_sizes: list[int]
    """Sides in pixels; the recommendation is for the first one."""
    configured: tuple[int, Level] | None = None
    """Micro-batch and recompute level of the configuration, if both are fixed."""
    notes: tuple[str, ...] = ()
    """Assumptions, for the user."""

    @property
    def largest(self) -> int:
        """The largest micro-batch to simulate."""
        return max(self.batch_size, *self.micro_batches)


def default_question() -> Question:
    """The table of the documentation: YOLO11l, 32 images a step, 16 GiB."""
    return Question(
        spec=StepSpec(ModelConfig(precision="fp16")),
        budget_bytes=DEFAULT_BUDGET_BYTES,
        batch_size=32,
        num_devices=1,
        micro_batches=[16, 32],
        image_sizes=[640, 800],
    )


def table_rows(question: Question) -> list[PlanRow]:
    """A row for each image size, micro-batch, precision and recompute level."""
    return [
        _row(question, question.spec.at(image_size, precision), micro_batch, level)
        for image_size in question.image_sizes
        for micro_batch in question.micro_batches
        for precision in get_args(Precision)
        for level in get_args(Level)
    ]


def _row(question: Question, spec: StepSpec, micro_batch: int, level: Level) -> PlanRow:
    components = predict(spec, question.largest, level, micro_batch, micro_batch < question.batch_size)
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


def recommendation(question: Question) -> Recommendation:
    """The fastest combination at the first image size.

    Raises:
        ConfigError: If nothing fits.
    """
    spec = replace(question.spec, image_size=question.image_sizes[0])
    return recommend(spec, question.budget_bytes, question.batch_size, largest=question.largest)


def as_json(question: Question) -> dict[str, Any]:
    """Table and recommendation as plain values; ``recompute_layers`` is present only for a mixture of levels.

    Raises:
        ConfigError: If nothing fits.
    """
    plan = recommendation(question)
    keys = ("micro_batch", "accumulate", "recompute", "precision", "peak_bytes")
    recommended = {key: getattr(plan, key) for key in keys}
    if plan.recompute_layers:
        recommended["recompute_layers"] = plan.layer_levels
    rows = [asdict(row) for row in table_rows(question)]
    return {"budget_bytes": question.budget_bytes, "rows": rows, "recommended": recommended}


def about(question: Question) -> str:
    """Describe what is planned, the assumptions, and the need of the configuration as it is."""
    spec = question.spec
    lines = [
        f"{spec.model.network}, {spec.num_classes} classes, {spec.boxes_per_image} boxes an image, "
        f"{spec.model.optimizer.name}; {question.batch_size} images an optimizer step"
        + (f" on each of {question.num_devices} devices" if question.num_devices > 1 else ""),
        *question.notes,
    ]
    if question.configured is not None and question.configured[0] <= question.largest:
        micro_batch, level = question.configured
        row = _row(question, replace(spec, image_size=question.image_sizes[0]), micro_batch, level)
        lines.append(
            f"as configured (micro-batch {micro_batch}, {spec.model.precision}, {level}): "
            f"{format_bytes(row.peak_bytes)}, {row.verdict}"
        )
    return "\n".join(lines)
