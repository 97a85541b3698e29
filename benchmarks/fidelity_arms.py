"""The arms of a comparison: each trainer unchanged, or with one exchange whose effect is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fidelity_exchanges import (
    Exchange,
    hsv_of_8_bits,
    no_small_window,
    nothing,
    our_batches,
    own_normalizers,
    pools_of,
    their_batches,
    warp_as_theirs,
    warp_by_pixel_centers,
)
from fidelity_run import Recipe, Trainer


@dataclass(frozen=True)
class Arm:
    """A trainer and its exchange."""

    trainer: Trainer
    beside: tuple[str, ...]
    """The arms to compare this arm with, seed by seed. A gap above 0 means that this arm is better."""
    exchange: Exchange = nothing
    """The context in which the trainer runs."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the trainer whose values differ from the recipe."""
    recipe: Recipe = "parity"


def _ours(exchange: Exchange = nothing, beside: str = "yolofit", **settings: Any) -> Arm:
    """An arm of yolofit's trainer; ``__`` in the name of a setting stands for a dot."""
    return Arm("yolofit", (beside,), exchange, {key.replace("__", "."): value for key, value in settings.items()})


FROZEN = {"model__freeze_batch_norm": "true"}
BY_FOUR, BY_ONE = ({"data__micro_batch_size": size} for size in (4, 1))

ARMS: dict[str, Arm] = {
    "yolofit": Arm("yolofit", ("ultralytics",)),
    "ultralytics": Arm("ultralytics", ()),
    # The batches of one trainer with the step of the other.
    "yolofit, their batches": Arm("yolofit", ("yolofit", "ultralytics"), their_batches),
    "ultralytics, our batches": Arm("ultralytics", ("ultralytics", "yolofit"), our_batches),
    # Partners of mosaics.
    "yolofit, pools of 16": _ours(pools_of(16)),
    "yolofit, pools of 64": _ours(pools_of(64)),
    "yolofit, pools of 256": _ours(pools_of(256)),
    "yolofit, no close mosaic": _ours(data__augment__close_mosaic=0),
    # Pixels.
    "yolofit, warpAffine": _ours(warp_as_theirs),
    "yolofit, warpAffine by pixel centres": _ours(warp_by_pixel_centers),
    "yolofit, HSV of 8 bits": _ours(hsv_of_8_bits),
    # The optimizer step.
    "yolofit, no small window": _ours(no_small_window),
    "yolofit, no weight decay": _ours(model__optimizer__weight_decay=0),
    "yolofit, no bias warm-up": _ours(model__schedule__warmup_bias_lr=0),
    "yolofit, no average": _ours(model__ema__decay=0),
    "yolofit, no clipping": _ours(model__optimizer__max_grad_norm=0),
    "yolofit, rate by the step": _ours(model__schedule__per_epoch="false"),
    # Accumulation, exact or with a normalizer for each micro-batch.
    "yolofit, 4 x 4": _ours(**BY_FOUR),
    "yolofit, 4 x 4, own normalisers": _ours(own_normalizers, "yolofit, 4 x 4", **BY_FOUR),
    "yolofit, 16 x 1": _ours(**BY_ONE),
    "yolofit, 16 x 1, own normalisers": _ours(own_normalizers, "yolofit, 16 x 1", **BY_ONE),
    "yolofit, frozen": _ours(**FROZEN),
    "yolofit, frozen, 4 x 4, own normalisers": _ours(own_normalizers, "yolofit, frozen", **BY_FOUR, **FROZEN),
    "yolofit, frozen, 16 x 1, own normalisers": _ours(own_normalizers, "yolofit, frozen", **BY_ONE, **FROZEN),
    # The defaults of each trainer.
    "yolofit, its defaults": Arm("yolofit", ("ultralytics, its defaults",), recipe="defaults"),
    "ultralytics, its defaults": Arm("ultralytics", (), recipe="defaults"),
}

PAIRS = [(name, other) for name, arm in ARMS.items() for other in arm.beside]
"""The compared arms. The gap is the metric of the first arm less the metric of the second."""
