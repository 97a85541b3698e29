"""Which weights ``engine.validate`` takes for a data set; its numbers are tested in test_fit and test_export."""

from __future__ import annotations

import re

import pytest

from engine.errors import ConfigError
from engine.run.checkpoint import check_classes
from engine.validate import main as validate


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["ic", "led"], ["ic", "led"]),
        (["ic", "led"], ["집적 회로", "LED"]),  # translated
        (["class 0", "class 1"], ["ic", "led"]),  # a file without names
    ],
)
def test_check_classes__numbers_count(theirs: list[str], ours: list[str]) -> None:
    check_classes(theirs, ours, "--ckpt_path")


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (["led", "ic"], ["ic", "led"], "ic is its class 1, the data set's 0"),
        (list("abcde"), ["ic"], "it has 5 classes (a, b, c, ...), the data set 1 (ic)"),
    ],
)
def test_check_classes__says_where_they_part(theirs: list[str], ours: list[str], message: str) -> None:
    full = f"--ckpt_path: {message}: use the data.yaml that it was trained with"
    with pytest.raises(ConfigError, match=f"^{re.escape(full)}$"):
        check_classes(theirs, ours, "--ckpt_path")


def test_validate__refuses_to_measure_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.limit_val_batches: 0: .*: leave it out, or set .* 1\.0$"):
        validate(["--data.root=data.yaml", "--ckpt_path=best.ckpt", "--trainer.limit_val_batches=0"])
