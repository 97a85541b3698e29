"""Which weights ``engine.validate`` takes for a data set; its numbers are tested in test_fit and test_export."""

from __future__ import annotations

import re

import pytest

from engine.errors import ConfigError
from engine.validate import _check_classes


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["ic", "led"], ["ic", "led"]),
        (["ic", "led"], ["집적 회로", "LED"]),  # translated
        (["class 0", "class 1"], ["ic", "led"]),  # a file without names
    ],
)
def test_check_classes__numbers_count(theirs: list[str], ours: list[str]) -> None:
    _check_classes(theirs, ours)


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
        _check_classes(theirs, ours)
