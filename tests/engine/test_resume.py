"""A run that was stopped anywhere goes on to the very same weights."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.fit import main as fit
from engine.resume import Interrupted

EPOCHS = 3
WINDOWS = 3


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "boards"
    return generate_pcb_dataset(folder, SyntheticConfig(num_train=16, num_val=4, image_size=96))


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """16 images in windows of 6 by 4, read by a worker."""
    return [
        "--config=configs/quickstart.yaml",
        f"--data.root={data_yaml}",
        f"--run.folder={folder}",
        "--data.image_size=64",
        "--data.batch_size=6",
        "--data.micro_batch_size=4",
        "--data.workers=1",
        f"--trainer.max_epochs={EPOCHS}",
        *more,
    ]


class RaiseSignal(L.Callback):
    """Sends this process a signal in the middle of one window's hooks, or of validation."""

    def __init__(self, number: int, at_step: int | None) -> None:
        self.number, self.at_step = number, at_step

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step + 1 == self.at_step:
            signal.raise_signal(self.number)

    def on_validation_start(self, trainer: L.Trainer, *args: object) -> None:
        if self.at_step is None and trainer.current_epoch == 0:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def undisturbed(data_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    fit(arguments(data_yaml, folder))
    return folder, final_state(folder)


def final_state(folder: Path) -> dict:
    """Weights, average, optimizer and step counts of the end, flattened."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = dict(checkpoint["state_dict"])
    for index, values in checkpoint["optimizer_states"][0]["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    state["num_steps_taken"] = torch.tensor(checkpoint["yolofit"]["step"]["num_steps_taken"])
    state["epoch"] = torch.tensor(checkpoint["epoch"])
    return state


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def results(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key.startswith(("epoch", "step", "train/", "val/"))}


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "at_step"), [(signal.SIGINT, 1), (signal.SIGTERM, 5), (signal.SIGTERM, 3), (signal.SIGINT, None)]
)
def test_signal__stops_with_a_checkpoint_from_which_the_run_goes_on_exactly(
    number: int, at_step: int | None, data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    """In the first window, in a middle one, in the last of an epoch, and in validation."""
    from engine import cli

    callbacks = cli.default_callbacks
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cli, "default_callbacks", lambda *args: [*callbacks(*args), RaiseSignal(number, at_step)])
        with pytest.raises(Interrupted, match=rf"stopped by {signal.Signals(number).name}: .*last\.ckpt"):
            fit(arguments(data_yaml, folder))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == (at_step or WINDOWS)
    fit(arguments(data_yaml, folder, f"--ckpt_path={last}"))
    assert_same(final_state(folder), undisturbed[1])
    assert [results(row) for row in rows_of(folder)] == [results(row) for row in rows_of(undisturbed[0])]


@pytest.mark.slow
def test_resume__extends_a_finished_run(data_yaml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(arguments(data_yaml, folder, "--trainer.max_epochs=1"))
    first = rows_of(folder)
    cli = fit(arguments(data_yaml, folder, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"))
    assert [row["epoch"] for row in rows_of(folder)] == ["0", "1", "2"]
    assert rows_of(folder)[0] == first[0]
    assert cli.model.step.num_steps_taken == EPOCHS * WINDOWS


KILLS = int(os.environ.get("YOLOFIT_TEST_KILLS", "2"))
MOMENTS = ("writing", "training", "training", "writing", "any")


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
def test_kill__at_random_moments_changes_nothing(data_yaml: Path, tmp_path: Path) -> None:
    """``kill -9`` again and again; a checkpoint after every window; each time the run goes on with ``last.ckpt``."""
    epochs = f"--trainer.max_epochs={max(EPOCHS, KILLS)}"
    fit(arguments(data_yaml, tmp_path / "undisturbed", epochs))
    folder, rng = tmp_path / "run", random.Random(0)
    last = folder / "checkpoints" / "last.ckpt"
    kills: list[str] = []
    while True:
        more = [f"--ckpt_path={last}"] if last.exists() else []
        args = arguments(data_yaml, folder, epochs, "--run.checkpoint_minutes=1e-9", *more)
        moment = MOMENTS[len(kills) % len(MOMENTS)] if len(kills) < KILLS else "never"
        process = start(args, tmp_path / "stderr.txt")
        if not kill_at(moment, process, last, rng):
            break
        kills.append(moment)
    print("killed:", kills)
    assert process.returncode == 0, (tmp_path / "stderr.txt").read_text()
    assert len(kills) >= KILLS // 2
    assert_same(final_state(folder), final_state(tmp_path / "undisturbed"))
    rows = rows_of(folder)
    assert [results(row) for row in rows] == [results(row) for row in rows_of(tmp_path / "undisturbed")]


def start(args: list[str], stderr: Path) -> subprocess.Popen:
    """The real command, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with stderr.open("w") as file:
        command = [sys.executable, "-m", "engine.fit", *args]
        return subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)


def kill_at(moment: str, process: subprocess.Popen, last: Path, rng: random.Random) -> bool:
    """Kill a process and its workers: while it writes a checkpoint, in training after one, or at any time.

    Returns:
        Whether it was killed, rather than finished.
    """
    before = modified(last)
    if moment == "never":
        process.wait()
    elif moment == "any":
        wait(process, rng.uniform(0, 15))
    else:
        while process.poll() is None and modified(last) == before:
            time.sleep(0.005)
        wait(process, rng.uniform(0, 0.5))
    while moment == "writing" and process.poll() is None and not last.with_suffix(".partial").exists():
        time.sleep(0.0005)
    if moment == "writing":
        wait(process, rng.uniform(0, 0.05))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def wait(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
