"""How the processes of a run meet."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from engine.errors import TrainingError
from engine.loop.processes import WindowParallel, meet, strategy_for


def test_meet__does_not_wait_for_a_process_that_has_ended() -> None:
    """One that Lightning has started, and that died before it could say why."""
    environment = LightningEnvironment()
    environment.set_world_size(2)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    started = time.monotonic()
    with pytest.raises(TrainingError, match="another process of this run has not begun"):
        meet(environment, children=[child])
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_strategy_for__several_processes_is_always_ours(name: str) -> None:
    assert type(strategy_for(name, 2)) is WindowParallel
    assert strategy_for("auto", 1) == "auto"
