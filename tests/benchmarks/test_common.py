from __future__ import annotations

import sys

import common
import pytest
import torch


def test_compare__pairs_rounds() -> None:
    result = common.compare({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0]}, "a")
    assert result["median_seconds"] == {"a": 2.0, "b": 4.0}
    assert result["median_ratio_to_a"] == {"a": 1.0, "b": 2.0}
    assert result["quartile_ratio_to_a"]["b"] == [2.0, 2.0] and result["quartile_seconds"]["a"] == [1.5, 3.0]


def test_command__tells_no_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/x/benchmarks/loader.py", "--out", "/a/b.json", "--data", "/c/d/data.yaml"])
    assert common._command() == "python benchmarks/loader.py --data PATH/TO/d/data.yaml"


def test_cpu_peak_bytes__counts_what_is_held_and_what_comes_and_goes() -> None:
    held = torch.zeros(1024)
    peak = common.cpu_peak_bytes(lambda: (torch.zeros(2048) + torch.zeros(2048)).sum(), [held])
    assert peak == pytest.approx(4 * (1024 + 3 * 2048), abs=1024)
