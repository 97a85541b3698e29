"""Statistics of paired runs: the gap between two arms, its 95 % interval and the verdict.

Both runs of a pair have the same seed and start from the same weights. With several orders, several seeds share the
same first weights. Their differences are averaged to one value for each of the first weights. These values are
independent, and Student's t gives the 95 % interval of their mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

MARGIN = 0.005
"""The largest loss of mAP that counts as non-inferior."""
CONFIDENCE = 0.95
MOST_SEEDS = 100_000
DECIDED_BY = "map50_95"


def half_width(deviation: float, num_seeds: int) -> float:
    """Half the width of the 95 % interval of the mean of ``num_seeds`` values with this standard deviation."""
    if num_seeds < 2:
        return math.inf
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num_seeds - 1)) * deviation / math.sqrt(num_seeds)


def seeds_to_decide(mean: float, deviation: float) -> int | None:
    """Seeds that put the interval on one side of ``-MARGIN`` if mean and deviation stay; None above `MOST_SEEDS`."""
    distance = abs(mean + MARGIN)
    least, most = 2, MOST_SEEDS
    if half_width(deviation, most) > distance:
        return None
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if half_width(deviation, middle) <= distance else (middle + 1, most)
    return least


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of independent values."""
    found: dict[str, Any] = {"independent": len(values), "mean": statistics.fmean(values) if values else None}
    if len(values) > 1:
        deviation = statistics.stdev(values)
        width = half_width(deviation, len(values))
        found |= {
            "standard_deviation": deviation,
            "interval_95": [found["mean"] - width, found["mean"] + width],
        }
    return found


def compared(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, interval and verdict of paired differences: first arm less second, higher is better."""
    found = interval(values)
    if len(values) < 2:
        return found | {"verdict": "undecided"}
    lowest, highest = found["interval_95"]
    verdict = "undecided"
    if lowest > -MARGIN:
        verdict = "non-inferior"
    elif highest < -MARGIN:
        verdict = "inferior"
    return found | {"verdict": verdict, "seeds_to_decide": seeds_to_decide(found["mean"], found["standard_deviation"])}


def gap_text(gap: Mapping[str, Any], form: str = "+.4f") -> str:
    """Mean and 95 % interval, such as ``-0.0012 (-0.0040 to +0.0016)``; only the mean for a single value."""
    between = gap.get("interval_95")
    return f"{gap['mean']:{form}}" + (f" ({between[0]:{form}} to {between[1]:{form}})" if between else "")


def verdict_text(gap: Mapping[str, Any]) -> str:
    """The verdict of a gap; if undecided, with the number of seeds that would decide."""
    needed = gap.get("seeds_to_decide") if gap["verdict"] == "undecided" else None
    return f"undecided: {needed} seeds would decide" if needed else str(gap["verdict"])


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Differences by seed, for the seeds of both arms."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def by_first_weights(values: Mapping[int, float], orders: int) -> list[list[float]]:
    """Group the values of seeds by first weights."""
    groups: dict[int, list[float]] = {}
    for seed, value in sorted(values.items()):
        groups.setdefault(seed // orders, []).append(value)
    return list(groups.values())


def spread(values: Mapping[int, float], orders: int = 1) -> dict[str, Any]:
    """Mean and standard deviation of an arm over its seeds; with several orders, also the deviation by source."""
    listed = list(values.values())
    deviation = statistics.stdev(listed) if len(listed) > 1 else None
    found = {"mean": statistics.fmean(listed) if listed else None, "standard_deviation": deviation, "values": listed}
    whole = [group for group in by_first_weights(values, orders) if len(group) == orders]
    if orders > 1 and len(whole) > 1:
        found |= _sources_of_variance(whole)
    return found


def _sources_of_variance(groups: list[list[float]]) -> dict[str, float]:
    """Standard deviations caused by the order and by the first weights, from a one-way analysis of variance."""
    within = statistics.fmean(statistics.variance(group) for group in groups)
    between = statistics.variance(statistics.fmean(group) for group in groups) - within / len(groups[0])
    return {"deviation_by_order": math.sqrt(within), "deviation_by_weights": math.sqrt(max(between, 0))}


def summarize(runs: Sequence[Mapping[str, Any]], pairs: Iterable[tuple[str, str]], orders: int = 1) -> dict[str, Any]:
    """Statistics of every arm, and gaps of all pairs with runs, for each data set, epoch and validator.

    Args:
        runs: The runs of a result file.
        pairs: The arms to compare, the first less the second.
        orders: Seeds for each of the first weights.
    """
    pairs = list(pairs)
    summary: dict[str, Any] = {}
    for data in sorted({run["data"] for run in runs}):
        chosen = [run for run in runs if run["data"] == data]
        for kept in sorted({kept for run in chosen for kept in run["validated"]}, key=_place):
            for validator in sorted({name for run in chosen for name in run["validated"].get(kept, {})}, reverse=True):
                arms: dict[str, dict[int, Mapping[str, float]]] = {}
                for run in chosen:
                    if found := run["validated"].get(kept, {}).get(validator):
                        arms.setdefault(run["trainer"], {})[run["seed"]] = found
                summary[f"{data}, {kept}, validated by {validator}"] = _case(arms, pairs, orders)
    return summary


def _place(kept: str) -> tuple[int, str]:
    """Sort key: early epochs in order, then the best and the last epoch."""
    return (int(kept.split()[1]), "") if kept.startswith("epoch ") else (10**9, kept)


def _case(
    arms: Mapping[str, Mapping[int, Mapping[str, float]]], pairs: Sequence[tuple[str, str]], orders: int
) -> dict[str, Any]:
    by_arm = {
        arm: spread({seed: found[DECIDED_BY] for seed, found in runs.items()}, orders) for arm, runs in arms.items()
    }
    gaps = {
        f"{first} less {other}": _gap(arms[first], arms[other], orders)
        for first, other in pairs
        if first in arms and other in arms and arms[first].keys() & arms[other].keys()
    }
    return {"arms": by_arm, "gaps": gaps}


def _gap(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]], orders: int
) -> dict[str, Any]:
    """The gap in mAP with its verdict, and the intervals of the differences in the other metrics."""
    by_metric = {}
    for metric in next(iter(ours.values())):
        own, other = (
            {seed: found[metric] for seed, found in runs.items() if metric in found} for runs in (ours, theirs)
        )
        if values := paired(own, other):
            by_metric[metric] = values
    independent = {
        metric: [statistics.fmean(group) for group in by_first_weights(values, orders)]
        for metric, values in by_metric.items()
    }
    gap = compared(independent.pop(DECIDED_BY))
    values = by_metric[DECIDED_BY]
    beside = {
        metric: interval(found) | {"level": statistics.fmean(run[metric] for run in theirs.values() if metric in run)}
        for metric, found in independent.items()
    }
    return {"seeds": len(values)} | gap | {"values": list(values.values()), "beside": beside}
