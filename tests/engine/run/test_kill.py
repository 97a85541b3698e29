"""``kill -9``, and signals to all processes of a run: it goes on to the very same weights."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.runs import (
    RunProcess,
    assert_same,
    final_state,
    make_boards,
    quickstart_arguments,
    rows_of,
    start_run,
)

KILLS = int(os.environ.get("YOLOFIT_TEST_KILLS", "5"))
"""How often the run is killed; 20 take some minutes: ``YOLOFIT_TEST_KILLS=20 pytest tests/engine/run/test_kill.py``."""
MOMENTS = ("writing", "training", "any", "training", "writing")


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=24, num_val=2)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """24 images in windows of 3 by 2, read by two workers."""
    return quickstart_arguments(data_yaml, folder, 64, 3, 2, "--data.workers=2", "--data.cache=none", *more)


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
def test_kill__at_random_moments_changes_nothing(data_yaml: Path, tmp_path: Path) -> None:
    """Again and again; a checkpoint after every window; each time the run goes on with ``last.ckpt``."""
    epochs = f"--trainer.max_epochs={KILLS // 2 + 2}"
    undisturbed = start_run(arguments(data_yaml, tmp_path / "undisturbed", epochs), tmp_path / "undisturbed.txt")
    assert undisturbed.wait() == 0, undisturbed.output.read_text()
    folder, rng = tmp_path / "run", random.Random(0)
    last = folder / "checkpoints" / "last.ckpt"
    kills: list[str] = []
    while True:
        more = [f"--ckpt_path={last}"] if last.exists() else []
        args = arguments(data_yaml, folder, epochs, "--run.checkpoint_minutes=1e-9", *more)
        run = start_run(args, tmp_path / "output.txt")
        if len(kills) == KILLS:
            break
        moment = MOMENTS[len(kills) % len(MOMENTS)]
        if not kill_at(moment, run, last, rng):
            break
        steps = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
        kills.append(f"{moment} after {steps} steps")
    assert run.wait() == 0, run.output.read_text()
    print("killed:", kills)
    assert len(kills) == KILLS
    assert_same(final_state(folder), final_state(tmp_path / "undisturbed"))
    assert rows_of(folder) == rows_of(tmp_path / "undisturbed")


def kill_at(moment: str, run: RunProcess, last: Path, rng: random.Random) -> bool:
    """Kill a run: while it writes a checkpoint, in training after one, or at any time.

    Returns:
        Whether it was killed, rather than finished.
    """
    before = modified(last)
    if moment == "any":
        run.wait(rng.uniform(0, 6))
    else:
        while run.is_running and modified(last) == before:
            time.sleep(0.005)
        run.wait(rng.uniform(0, 0.3))
    if moment == "writing":
        while run.is_running and not last.with_name(f"{last.name}.partial").exists():
            time.sleep(0.0005)
        run.wait(rng.uniform(0, 0.05))
    if not run.is_running:
        return False
    run.kill()
    return True


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(path: Path, run: RunProcess) -> None:
    while not path.exists():
        assert run.is_running, run.output.read_text()
        time.sleep(0.01)


@pytest.mark.slow
def test_signal__to_all_processes_at_once_ends_with_a_new_checkpoint(data_yaml: Path, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal, or SLURM, sends it: the workers do not end before the run has."""
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    run = start_run(arguments(data_yaml, folder, "--trainer.max_epochs=50"), tmp_path / "output.txt")
    wait_for(last, run)  # of the first epoch
    workers = psutil.Process(run.pid).children()
    before = torch.load(last, weights_only=True)["global_step"]
    run.signal_group(signal.SIGTERM)
    assert run.wait(120) == 2
    assert f"error: stopped by SIGTERM: resume with the same command and --ckpt_path {last}" in run.output.read_text()
    assert "worker" not in run.output.read_text().split("stopping after this window")[1]
    assert torch.load(last, weights_only=True)["global_step"] >= before
    assert workers
    assert psutil.wait_procs(workers, timeout=30)[1] == []


@pytest.mark.slow
def test_kill__of_the_training_process_alone_ends_its_workers(data_yaml: Path, tmp_path: Path) -> None:
    run = start_run(arguments(data_yaml, tmp_path / "run", "--trainer.max_epochs=50"), tmp_path / "output.txt")
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", run)
    workers = psutil.Process(run.pid).children()
    assert workers
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
