from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.run import lock
from engine.run.folder import RunConfig, prepare_run_folder


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_held", {})


def test_folder__of_a_new_run_is_empty(tmp_path: Path) -> None:
    config = RunConfig(tmp_path / "run")
    assert [prepare_run_folder(config, None).name for _ in range(3)] == ["run", "run-2", "run-3"]


def test_folder__of_a_resumed_run_is_its_own(tmp_path: Path) -> None:
    folder = prepare_run_folder(RunConfig(tmp_path / "run"), None)
    assert prepare_run_folder(RunConfig(tmp_path / "run"), folder / "checkpoints" / "last.ckpt") == folder
    assert prepare_run_folder(RunConfig(tmp_path / "run"), tmp_path / "other" / "last.ckpt").name == "run-2"


def test_folder__that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"run\.folder: .*run: cannot be made \(Read-only file system\): choose"):
        prepare_run_folder(RunConfig(tmp_path / "run"), None)


def test_folder__without_a_name_can_have_no_neighbor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match=r"^run\.folder: \.: is not empty: choose another folder$"):
        prepare_run_folder(RunConfig(Path()), None)


def test_folder__that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ConfigError, match=r"run\.folder: .*run: cannot be written to: choose another"):
        prepare_run_folder(RunConfig(tmp_path / "run"), None)
