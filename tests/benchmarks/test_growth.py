from __future__ import annotations

import growth
import pytest


def test_fit__finds_line_and_exponent() -> None:
    assert growth.fit([1, 2, 4], [5, 7, 11]) == pytest.approx({"fixed": 3, "per_unit": 2, "exponent": 0.57}, abs=0.01)
    assert growth.fit([1, 2, 4], [3, 12, 48])["exponent"] == pytest.approx(2)
