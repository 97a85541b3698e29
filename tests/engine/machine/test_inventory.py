"""Facts about this machine."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.machine import inventory


@pytest.mark.parametrize(
    ("method", "default", "expected"),
    [("fork", "spawn", None), ("spawn", "fork", 64), (None, "fork", None), (None, "forkserver", 64)],
)
def test_shm_free_bytes__only_where_windows_go_through_it(
    method: str | None, default: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: method)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [default])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64))
    assert inventory.shm_free_bytes() == expected


def test_shm_free_bytes__of_a_system_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert inventory.shm_free_bytes() is None
