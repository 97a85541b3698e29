from __future__ import annotations

import fidelity
import fidelity_arms
import fidelity_statistics
import pytest


def test_summarize__pairs_runs_by_seed() -> None:
    runs = [run("yolofit", 0, 0.5), run("ultralytics", 0, 0.4), run("yolofit", 1, 0.3), run("ultralytics", 1, 0.4)]
    summary = fidelity_statistics.summarize([*runs, run("yolofit", 2, 0.9)], fidelity_arms.PAIRS)
    found = summary["boards, last, validated by yolofit"]
    assert list(found["gaps"]) == ["yolofit less ultralytics"]
    gap = found["gaps"]["yolofit less ultralytics"]
    assert gap["values"] == pytest.approx([0.1, -0.1]) and gap["beside"]["cls_loss"]["mean"] == pytest.approx(0)
    assert found["arms"]["ultralytics"] == {"mean": 0.4, "standard_deviation": 0.0, "values": [0.4, 0.4]}


def test_summarize__counts_first_weights_once() -> None:
    maps = {"yolofit": [0.41, 0.43, 0.30, 0.32], "ultralytics": [0.40, 0.40, 0.30, 0.30]}
    runs = [run(arm, seed, value) for arm, values in maps.items() for seed, value in enumerate(values)]
    found = fidelity_statistics.summarize(runs, fidelity_arms.PAIRS, orders=2)["boards, last, validated by yolofit"]
    gap = found["gaps"]["yolofit less ultralytics"]
    assert (gap["seeds"], gap["independent"]) == (4, 2)
    # By hand: means 0.02 and 0.01 of the two first weights, deviation 0.00707, and 12.706 is t's quantile.
    assert gap["interval_95"] == pytest.approx([0.015 - 12.706 * 0.00707 / 2**0.5, 0.015 + 12.706 * 0.005], abs=1e-4)
    # Two values each, 0.02 apart, have a variance of 0.0002; the means, 0.11 apart, one of 0.00605.
    assert found["arms"]["yolofit"]["deviation_by_order"] == pytest.approx(0.0002**0.5)
    assert found["arms"]["yolofit"]["deviation_by_weights"] == pytest.approx((0.00605 - 0.0001) ** 0.5)


def run(trainer: str, seed: int, map50_95: float) -> dict:
    validated = {side: {"map50_95": map50_95, "cls_loss": 1.0} for side in fidelity.VALIDATORS}
    return {"trainer": trainer, "data": "boards", "seed": seed, "validated": {"last": validated, "best": validated}}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.010, 0.012, 0.008, 0.011], "non-inferior"),
        ([-0.030, -0.028, -0.032, -0.029], "inferior"),
        ([-0.020, 0.015, 0.002, -0.011], "undecided"),
        ([0.2], "undecided"),
    ],
)
def test_compared__decides_by_the_interval(values: list[float], verdict: str) -> None:
    assert fidelity_statistics.compared(values)["verdict"] == verdict


def test_compared__has_the_interval_of_student_s_t() -> None:
    found = fidelity_statistics.compared([1.0, 2.0, 3.0, 4.0])
    # By hand: mean 2.5, deviation 1.29, and 3.182 is the quantile of t with 3 degrees of freedom.
    half_width = 3.182 * 1.2910 / 2
    assert found["interval_95"] == pytest.approx([2.5 - half_width, 2.5 + half_width], abs=1e-3)


def test_seeds_to_decide__is_the_first_number_whose_interval_is_on_one_side() -> None:
    number = fidelity_statistics.seeds_to_decide(mean=0.0, deviation=0.02)
    assert fidelity_statistics.half_width(0.02, number) <= 0.005 < fidelity_statistics.half_width(0.02, number - 1)
    assert 62 <= number <= 66  # (1.96 * 0.02 / 0.005) ** 2 is 61.5, and t is a little wider
    assert fidelity_statistics.seeds_to_decide(mean=-0.005, deviation=0.02) is None
