from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.memory.units import GIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("14GiB", 14 * GIB),
        ("1.5 gib", 3 * GIB // 2),
        (" 900 MiB ", 900 * MIB),
        ("16GB", 16_000_000_000),
        ("2kb", 2000),
        ("2KiB", 2048),
        ("1TiB", 1024 * GIB),
        ("7 B", 7),
    ],
)
def test_parse_bytes__reads_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["14", "14G", "GiB", "-1GiB", "0GiB", "1,5GiB", "14 GiB VRAM", "0.1B", ""])
def test_parse_bytes__rejects_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="must be a positive size with its unit, such as 14GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * MIB, "200.0 MiB"), (14 * GIB, "14.0 GiB")],
)
def test_format_bytes__uses_the_largest_unit(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@settings(deadline=None, max_examples=40)
@given(st.integers(min_value=1, max_value=2**50))
def test_format_bytes__is_read_back(num_bytes: int) -> None:
    # The text has one decimal and a value of at least 1, so it rounds by 5 % at most.
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.05)
