from __future__ import annotations

import os
from collections.abc import Iterator

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
