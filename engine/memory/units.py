"""Convert between bytes and sizes as people write them, such as ``14GiB``, ``15.0 GB`` and ``14.0 GiB``."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_UNITS = {"b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


def parse_bytes(text: str) -> int:
    """The bytes of a size with its unit: B, KiB to TiB (powers of 1024) or KB to TB (powers of 1000).

    Raises:
        ValueError: If it is not a positive number with one of these units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    num_bytes = round(float(match.group(1)) * unit) if match and unit else 0
    if num_bytes < 1:
        raise ValueError(f"{text}: must be a positive size with its unit, such as 14GiB or 900MiB")
    return num_bytes


def format_bytes(num_bytes: int) -> str:
    """The size in the largest binary unit of which there is at least one, such as ``14.0 GiB``."""
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} B"
