"""What paired runs say about one trainer beside another: a gap with its interval, and whether that is enough to decide.

Runs of one seed start from the same weights. Their difference is one value; seeds are independent, so the mean of the
values has a 95 % interval by Student's t.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

MARGIN = 0.005
"""How much mAP may be lower before users would mind."""
CONFIDENCE = 0.95
MOST_SEEDS = 100_000


def half_width(deviation: float, num_seeds: int) -> float:
    """Of the interval round the mean of so many values with this standard deviation."""
    if num_seeds < 2:
        return math.inf
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1)) * deviation / math.sqrt(num_seeds)


def seeds_to_decide(mean: float, deviation: float) -> int | None:
    """Seeds after which the interval lies on one side of ``-MARGIN`` if mean and deviation stay; None: too many."""
    distance = abs(mean + MARGIN)
    least, most = 2, MOST_SEEDS
    if half_width(deviation, most) > distance:
        return None
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if half_width(deviation, middle) <= distance else (middle + 1, most)
    return least


def compared(values: Sequence[float]) -> dict[str, Any]:
    """Mean gap, standard deviation, interval and verdict of paired differences (ours less theirs, higher is better)."""
    if len(values) < 2:
        return {"seeds": len(values), "mean": values[0] if values else None, "verdict": "undecided"}
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    width = half_width(deviation, len(values))
    verdict = "undecided"
    if mean - width > -MARGIN:
        verdict = "non-inferior"
    elif mean + width < -MARGIN:
        verdict = "inferior"
    return {
        "seeds": len(values),
        "mean": mean,
        "standard_deviation": deviation,
        "interval_95": [mean - width, mean + width],
        "verdict": verdict,
        "seeds_to_decide": seeds_to_decide(mean, deviation),
    }


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation, with the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values) if values else None, "standard_deviation": deviation, "values": values}
