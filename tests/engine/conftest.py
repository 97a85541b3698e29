from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

from engine.command_line import cli
from engine.loop.monitor import MemoryMonitor
from engine.loop.reporter import RunReporter
from tests.helpers.checkpoints import Overfitted, overfitted_in


class NoPictures(RunReporter):
    """Collects what a report needs, and leaves it at that."""

    def _draw(self, *args: object) -> None:
        pass

    def _finish(self, *args: object) -> None:
        pass


class NoTimeline(MemoryMonitor):
    """Writes ``memory.csv`` only."""

    def _report(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def runs_without_pictures() -> Iterator[None]:
    """Runs within this process draw nothing, which would take most of their time; those of the real command do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "RunReporter", NoPictures)
        patch.setattr(cli, "MemoryMonitor", NoTimeline)
        yield


@pytest.fixture(scope="session")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    """A network that finds something, trained once for all tests that need one, whichever process runs them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "overfitted"
    with FileLock(folder.with_suffix(".lock")):
        return overfitted_in(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Plain pictures of several kinds, one of them deeper, with names that collide or are not ASCII."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, size in {"a.jpg": (40, 60), "a.png": (40, 60), "deep/a.jpg": (20, 30), "부품.png": (30, 30)}.items():
        content = cv2.imencode(Path(name).suffix, np.full((*size, 3), 90, np.uint8))[1]
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return folder
