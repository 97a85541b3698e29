"""How long a recipe keeps what it has made: until nobody waits for it any more."""

from __future__ import annotations

import torch

from models.recompute.recipes import _FromNode, _Output


def counting(inputs: tuple[_FromNode, ...], num_uses: int, made: list[int]) -> _FromNode:
    def function(*parts: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return sum(parts, start=torch.ones(()))

    return _FromNode(function, inputs, _Output(num_uses))


def test_make__keeps_the_result_only_while_another_recipe_waits() -> None:
    made: list[int] = []
    recipe = counting((), 3, made)
    kept = []
    for _ in range(3):
        recipe.make()
        kept.append(recipe.output.result is not None)
    assert kept == [True, True, False]
    assert len(made) == 1


def test_make__gives_up_what_it_needs_no_more_all_the_way_up() -> None:
    """``last`` waits in two places, and so does each that it is made of: its second use needs none of them again."""
    made: list[int] = []
    first = counting((), 2, made)
    middle = counting((first,), 2, made)
    last = counting((middle,), 2, made)
    for _ in range(2):
        assert float(last.make()) == 3
    assert len(made) == 3
    assert [recipe.output.num_uses for recipe in (first, middle, last)] == [0, 0, 0]
    assert [recipe.output.result for recipe in (first, middle, last)] == [None, None, None]
