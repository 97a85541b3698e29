"""Where yolofit keeps what it can make again."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from models import cache_folder


def test_cache_folder__without_a_home_is_temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs as a user without a name."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("YOLOFIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("YOLOFIT_CACHE")
    assert cache_folder() == Path(tempfile.gettempdir()) / "yolofit"
