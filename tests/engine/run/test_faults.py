"""What docs/faults.md promises about runs whose machine fails under them."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import psutil
import pytest
import torch

from engine.command_line import cli as command_line
from engine.errors import ConfigError, TrainingError
from engine.fit import main as fit
from engine.loop.reporter import RunReporter
from engine.run import lock
from engine.run.checkpoint_io import verify_checkpoint
from engine.run.faults import explained_faults
from engine.run.lock import lock_folder
from engine.run.logs import EventFiles, MetricsCsv, read_rows
from engine.training.step import TrainingStep
from tests.helpers.runs import RunProcess, final_state, make_boards, quickstart_arguments, rows_of, start_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=16, num_val=2)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """Two windows of 8 an epoch."""
    return quickstart_arguments(data_yaml, folder, 64, 8, 8, "--data.workers=0", "--trainer.max_epochs=2", *more)


class At(L.Callback):
    """Calls something once, when the second epoch begins."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.current_epoch == 1:
            self.call()


@pytest.fixture
def in_second_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has a run call something when its second epoch begins; no pictures are drawn."""
    callbacks = command_line.default_callbacks
    monkeypatch.setattr(RunReporter, "_draw", lambda *_: None)

    def arrange(call: Callable[[], object]) -> None:
        monkeypatch.setattr(command_line, "default_callbacks", lambda *args: [*callbacks(*args), At(call)])

    return arrange


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """From now on nothing below ``folder`` can be opened for writing."""
    real_open = io.open

    def refuse(file: object, mode: str = "r", *args: object, **kwargs: object) -> object:
        inside = isinstance(file, str | Path) and folder in Path(file).parents
        if inside and set(mode) & set("wax+"):
            raise OSError(number, os.strerror(number), str(file))
        return real_open(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk__that_refuses_from_the_second_epoch_on(
    number: int,
    data_yaml: Path,
    tmp_path: Path,
    in_second_epoch: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Full, or mounted read-only by the system after an error: training ends, and what was saved is there."""
    folder = tmp_path / "run"
    in_second_epoch(lambda: refuse_writing(monkeypatch, folder, number))
    message = rf"\.ckpt: cannot be written \({os.strerror(number)}\): the previous file is unchanged"
    with pytest.raises(TrainingError, match=message):
        fit(arguments(data_yaml, folder))
    assert f"metrics.csv: cannot be written ({os.strerror(number)}): the next row tries again" in caplog.text
    monkeypatch.undo()
    for name in ("last.ckpt", "best.ckpt"):
        verify_checkpoint(folder / "checkpoints" / name, "--ckpt_path")
    assert final_state(folder)["num_steps_taken"] == 2
    assert [row["epoch"] for row in rows_of(folder)] == ["0"]
    assert not list(folder.rglob("*.partial"))


def test_metrics_csv__a_row_that_the_disk_refused_comes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsCsv(tmp_path)
    log.log_metrics({"epoch": 0, "a": 1.0}, 2)
    with monkeypatch.context() as patch:
        refuse_writing(patch, tmp_path, errno.ENOSPC)
        log.log_metrics({"epoch": 1, "a": 2.0}, 5)
    assert len(caplog.messages) == 1
    assert [row["a"] for row in read_rows(tmp_path / "metrics.csv")] == ["1.0"]
    log.log_metrics({"epoch": 2, "a": 3.0, "b": 4.0}, 8)
    assert [(row["a"], row["b"]) for row in read_rows(tmp_path / "metrics.csv")] == [
        ("1.0", ""),
        ("2.0", ""),
        ("3.0", "4.0"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_metrics_csv__goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path)
    for epoch in range(4):
        log.log_metrics({"epoch": epoch, "a": float(epoch)}, 3 * epoch + 2)
    resumed = MetricsCsv(tmp_path, num_steps_behind=7)  # in the middle of the third epoch
    resumed.log_metrics({"epoch": 2, "a": 7.0}, 8)
    resumed.log_metrics({"b": 1.0}, 8)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [(row["epoch"], row["a"], row["b"]) for row in rows] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "7.0", "1.0"),
    ]


def test_metrics_csv__has_one_row_of_an_epoch_that_was_resumed_within(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path)
    log.log_metrics({"epoch": 0, "a": 0.0}, 2)
    log.log_metrics({"epoch": 1, "a": 1.0}, 3)  # where trainer.max_steps has ended the run
    resumed = MetricsCsv(tmp_path, num_steps_behind=4)
    resumed.log_metrics({"epoch": 1, "a": 2.0}, 5)
    assert [(row["epoch"], row["step"], row["a"]) for row in read_rows(tmp_path / "metrics.csv")] == [
        ("0", "2", "0.0"),
        ("1", "5", "2.0"),
    ]


def test_event_files__that_the_disk_refuses_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventFiles(tmp_path)
    log.log_metrics({"a": 1.0}, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.experiment, "add_scalar", full)
    monkeypatch.setattr(log.experiment, "flush", full)
    log.log_metrics({"a": 1.0}, 2)
    log.log_metrics({"a": 1.0}, 3)
    log.save()
    log.finalize("success")
    (message,) = caplog.messages
    assert message.endswith(
        "tensorboard/: cannot be written (No space left on device): TensorBoard receives no more values"
    )


@pytest.mark.slow
def test_worker__that_is_killed_ends_the_run_in_one_line(data_yaml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    args = arguments(data_yaml, folder, "--data.workers=2", "--trainer.max_epochs=100")
    run = start_run(args, tmp_path / "output.txt")
    wait_for(last, run)
    psutil.Process(run.pid).children()[0].kill()
    assert run.wait(60) == 2
    line = run.output.read_text().splitlines()[-1]
    assert line.startswith("error: a process that prepares images is gone (DataLoader worker")
    assert line.endswith(f"lower data.workers or data.batch_size; resume with the same command and --ckpt_path {last}")
    verify_checkpoint(last, "--ckpt_path")


@pytest.mark.slow
def test_device__that_is_lost_ends_the_run_in_one_line(
    data_yaml: Path, tmp_path: Path, in_second_epoch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*args: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might ...")

    folder = tmp_path / "run"
    in_second_epoch(lambda: monkeypatch.setattr(TrainingStep, "_accumulate", lose))
    last = folder / "checkpoints" / "last.ckpt"
    message = r"^the device has failed \(CUDA error: unspecified launch failure\): .* --ckpt_path "
    with pytest.raises(TrainingError, match=f"{message}{re.escape(str(last))}$"):
        fit(arguments(data_yaml, folder))
    verify_checkpoint(last, "--ckpt_path")
    assert final_state(folder)["num_steps_taken"] == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.AcceleratorError("CUDA error: x"), "the device has failed .*; no checkpoint was written yet: start"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "is gone .* lower data.workers"),
        (EOFError(), r"a process that prepares images is gone \(EOFError\): .* lower data.workers"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset"), "prepares images is gone .* lower data.workers"),
        (OSError(errno.EIO, "Input/output error", "a.jpg"), r"a\.jpg: Input/output error: make room or look"),
    ],
)
def test_explained_faults__are_one_line(error: Exception, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message) as caught, explained_faults(tmp_path / "last.ckpt"):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_explained_faults__leaves_programming_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explained_faults(tmp_path / "last.ckpt"):
        raise RuntimeError("shapes differ")


@pytest.mark.slow
def test_clock__that_jumps_changes_nothing(
    data_yaml: Path, tmp_path: Path, in_second_epoch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day back in the middle of the run, as after a wrong BIOS clock is set right."""
    real = time.time
    fit(arguments(data_yaml, tmp_path / "steady"))
    in_second_epoch(lambda: monkeypatch.setattr(time, "time", lambda: real() - 86400))
    fit(arguments(data_yaml, tmp_path / "jump"))
    steady, jump = (final_state(tmp_path / name) for name in ("steady", "jump"))
    assert all(torch.equal(steady[name], jump[name]) for name in steady)
    assert rows_of(tmp_path / "steady") == rows_of(tmp_path / "jump")


def test_clock__is_read_only_where_it_is_shown() -> None:
    """Durations, due times and orders come from ``time.monotonic`` and ``time.perf_counter``, which never jump."""
    users = [
        path.relative_to(ROOT).as_posix()
        for package in ("engine", "models", "data")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\btime\.time\(|datetime\.(now|utcnow|today)\(", path.read_text())
    ]
    assert sorted(users) == ["engine/inference/export_formats.py", "engine/report/memory_log.py"]


def hold(folder: Path, ready: Path) -> None:
    lock_folder(folder)
    ready.touch()
    signal.pause()


def test_folder__of_a_run_that_goes_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock goes with its process, however that ends."""
    monkeypatch.setattr(lock, "_held", {})
    ready = tmp_path / "ready"
    context = torch.multiprocessing.get_context("fork")
    other = context.Process(target=hold, args=(tmp_path / "run", ready))
    other.start()
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(ConfigError, match=r"run\.folder: .*run: another run is writing into it: stop that one"):
        lock_folder(tmp_path / "run")
    lock_folder(tmp_path / "run-2")
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    lock_folder(tmp_path / "run")


def wait_for(path: Path, run: RunProcess) -> None:
    while not path.exists():
        assert run.is_running, run.output.read_text()
        time.sleep(0.01)
