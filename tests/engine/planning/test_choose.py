"""The choice stays within the budget, covers the effective batch, and is faster with more memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.memory.units import GIB, MIB
from engine.planning.choose import Option, choose, margin_of, splits, time_of_step, verdict_of

FIXED_MIB = 900


def make_options(per_image_mib: int = 500) -> list[Option]:
    """Three levels with affine memory, like YOLO11l."""

    def components(share: float):
        return lambda micro_batch, accumulates: {
            "weights": (FIXED_MIB + 100 * accumulates) * MIB,
            "activations": round(share * micro_batch * per_image_mib * MIB),
        }

    prices = {"none": (0.0, 1.0), "elementwise": (0.03, 0.36), "block": (0.25, 0.23)}
    return [Option(level, extra_time, components(share)) for level, (extra_time, share) in prices.items()]


budgets = st.integers(min_value=GIB // 2, max_value=80 * GIB)
batches = st.integers(min_value=1, max_value=130)


@given(budgets, batches)
def test_choose__stays_within_the_budget_and_reaches_the_batch(budget_bytes: int, batch_size: int) -> None:
    try:
        choice = choose(make_options(), budget_bytes, batch_size)
    except ConfigError:
        least_bytes = sum(make_options()[-1].components(1, batch_size > 1).values())
        assert least_bytes > budget_bytes - margin_of(budget_bytes)
        return
    assert choice.peak_bytes <= budget_bytes - margin_of(budget_bytes)
    assert verdict_of(choice.peak_bytes, budget_bytes) == "fits"
    assert choice.micro_batch * choice.accumulate >= batch_size
    assert choice.micro_batch * (choice.accumulate - 1) < batch_size


@given(budgets, budgets, batches)
def test_choose__a_larger_budget_never_gives_a_slower_plan(first: int, second: int, batch_size: int) -> None:
    times = []
    for budget_bytes in sorted((first, second)):
        try:
            times.append(choose(make_options(), budget_bytes, batch_size).time(batch_size))
        except ConfigError:
            times.append(float("inf"))
    assert times[1] <= times[0]


@given(budgets, batches)
def test_choose__nothing_that_fits_is_faster(budget_bytes: int, batch_size: int) -> None:
    options, limit_bytes = make_options(), budget_bytes - margin_of(budget_bytes)
    fitting = [
        time_of_step(batch_size, accumulate, option.extra_time)
        for micro_batch, accumulate in splits(batch_size)
        for option in options
        if sum(option.components(micro_batch, accumulate > 1).values()) <= limit_bytes
    ]
    if fitting:
        assert choose(options, budget_bytes, batch_size).time(batch_size) == min(fitting)


@given(budgets, batches, st.integers(min_value=1, max_value=40))
def test_choose__keeps_the_users_micro_batch(budget_bytes: int, batch_size: int, micro_batch: int) -> None:
    micro_batch = min(micro_batch, batch_size)
    try:
        assert choose(make_options(), budget_bytes, batch_size, micro_batch).micro_batch == micro_batch
    except ConfigError as error:
        assert f"micro-batch {micro_batch} at" in str(error)


@given(batches)
def test_splits__are_evened_out(batch_size: int) -> None:
    found = splits(batch_size)
    assert found[0] == (batch_size, 1) and found[-1] == (1, batch_size)
    for micro_batch, accumulate in found:
        assert accumulate == -(-batch_size // micro_batch)
        assert micro_batch == -(-batch_size // accumulate)


def test_choose__prefers_cheap_recomputation_to_small_micro_batches() -> None:
    # 32 images need 16.5 GiB at none and 6.5 GiB at elementwise: recomputing costs 3 %, a second micro-batch 6 %.
    choice = choose(make_options(), 12 * GIB, 32)
    assert (choice.option.recompute, choice.micro_batch) == ("elementwise", 32)
    # At 5 GiB a second micro-batch of elementwise is cheaper than repeating every layer.
    choice = choose(make_options(), 5 * GIB, 32)
    assert (choice.option.recompute, choice.micro_batch, choice.accumulate) == ("elementwise", 16, 2)


def test_choose__skips_what_cannot_fit_without_predicting_it() -> None:
    def must_not_be_called(micro_batch: int, accumulates: bool) -> dict[str, int]:
        raise AssertionError("predicted although it cannot fit")

    hopeless = Option("none", 0.0, must_not_be_called, may_fit=lambda *_: False)
    assert choose([hopeless, *make_options()[1:]], 12 * GIB, 32).option.recompute == "elementwise"


def test_choose__says_what_would_fit_if_nothing_does() -> None:
    with pytest.raises(ConfigError) as error:
        choose(make_options(), GIB, 32)
    assert str(error.value) == (
        "memory.budget: 1.0 GiB: nothing fits. The smallest plan, micro-batch 1 at recompute block, needs 1.1 GiB and "
        "a margin of 5% of the budget. Give 1.2 GiB, lower data.image_size, or take a smaller model.network."
    )
    enough = choose(make_options(), int(1.2 * GIB), 32)
    assert enough.micro_batch == 1


@pytest.mark.parametrize(("peak_gib", "verdict"), [(15.1, "fits"), (15.3, "tight"), (16.0, "tight"), (16.01, "spills")])
def test_verdict_of__by_budget_and_margin(peak_gib: float, verdict: str) -> None:
    assert verdict_of(int(peak_gib * GIB), 16 * GIB) == verdict
