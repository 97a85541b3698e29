from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from rich.text import Text

from engine.loop import progress, throughput
from engine.loop.advice import print_advice
from engine.loop.progress import TrainingProgress, format_duration, gpu_gib
from engine.loop.throughput import Throughput
from engine.machine.diagnosis import Finding

STEPS_PER_EPOCH, NUM_EPOCHS, STEP_SECONDS, VALIDATION_SECONDS = 10, 3, 2.0, 30.0


class Clock:
    """Time passes only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    monotonic = perf_counter


class Run:
    """What the callbacks see of a trainer and its module, without either."""

    def __init__(self, width: int, is_terminal: bool = True, max_steps: int = -1) -> None:
        self.trainer = SimpleNamespace(
            current_epoch=0,
            global_step=0,
            callbacks=[],
            max_epochs=NUM_EPOCHS,
            num_training_batches=STEPS_PER_EPOCH,
            num_val_batches=[5],
            ckpt_path=None,
            callback_metrics={"val/map50": torch.tensor(0.912), "val/map50_95": torch.tensor(0.634)},
        )
        losses = {"train/box_loss": 1.25, "train/cls_loss": 0.75, "train/dfl_loss": 1.0}
        self.module = SimpleNamespace(
            last_outcome=None,
            device=torch.device("cpu"),
            epoch_statistics=SimpleNamespace(summary=lambda: losses),
        )
        self.throughput = Throughput()
        self.progress = TrainingProgress(self.throughput, max_steps)
        self.console = Console(file=io.StringIO(), force_terminal=is_terminal, width=width)
        self.progress.console = self.console

    def texts(self) -> list[str]:
        """Every line that was on the screen, without colors and in the order of its appearance."""
        lines = self.console.file.getvalue().replace("\r", "\n").splitlines()
        return [plain for line in lines if (plain := Text.from_ansi(line).plain.rstrip())]

    def epoch(self, clock: Clock, number: int, first_step: int = 0) -> None:
        """A run that resumes in the middle of an epoch hears nothing of its start."""
        self.trainer.current_epoch = number
        callbacks = (self.throughput, self.progress)
        for callback in callbacks if first_step == 0 else ():
            callback.on_train_epoch_start(self.trainer, self.module)
        for step in range(first_step, STEPS_PER_EPOCH):
            for callback in callbacks:
                callback.on_train_batch_start(self.trainer, self.module, None, step)
            clock.seconds += STEP_SECONDS
            self.trainer.global_step += 1
            for callback in callbacks:
                callback.on_train_batch_end(self.trainer, self.module, None, [None] * 16, step)
            self.module.last_outcome = SimpleNamespace(box_loss=1.25, cls_loss=0.75, dfl_loss=1.0)
        self.progress.on_validation_start(self.trainer, self.module)
        clock.seconds += VALIDATION_SECONDS
        self.progress.on_validation_batch_end(self.trainer, self.module, None, None, 4)
        self.progress.on_validation_end(self.trainer, self.module)
        self.progress.on_train_epoch_end(self.trainer, self.module)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_progress__says_what_it_waits_for_and_nothing_that_it_does_not_know(clock: Clock) -> None:
    run = Run(width=120)
    run.epoch(clock, 0)
    texts = run.texts()
    assert texts[0].endswith("0/10 waiting for the first images")
    first = next(text for text in texts if " 1/10" in text)
    assert first.endswith(" 1/10") and "img/s" not in first and "ETA" not in first
    second = next(text for text in texts if " 2/10" in text)
    assert second.endswith("box 1.25 cls 0.75 dfl 1.00  8 img/s  wait 0%  ETA >0:00:56")


def test_progress__counts_validations_into_the_time_left(clock: Clock) -> None:
    run = Run(width=120)
    run.epoch(clock, 0)
    row = run.texts()[-1]
    # Two more epochs of 10 steps of 2 s and a validation of 30 s.
    assert row.split() == ["1/3", "1.25", "0.75", "1.00", "0.9120", "0.6340", "8", "0%", "-", "0:01:40"]
    run.epoch(clock, 1)
    assert any(text.endswith("ETA 0:01:20") for text in run.texts())  # at the end of its steps: two validations
    run.epoch(clock, 2)
    assert run.texts()[-1].endswith("0:00:00")


def test_progress__ends_with_max_steps(clock: Clock) -> None:
    run = Run(width=120, max_steps=STEPS_PER_EPOCH + 5)
    run.epoch(clock, 0)
    assert run.texts()[-1].endswith(" 0:00:40")  # five more steps of 2 s, and a validation of 30 s


def test_progress__ends_with_max_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(width=120)
    run.trainer.callbacks = [timer := Timer("00:00:01:00")]
    monkeypatch.setattr(timer, "time_remaining", lambda: 12.0)
    run.epoch(clock, 0)
    assert run.texts()[-1].endswith(" 0:00:12")


def test_progress__of_a_run_that_goes_on_within_an_epoch(clock: Clock) -> None:
    """The line continues where it was, and the time left is that of the steps that are left."""
    run = Run(width=120)
    progress = {"epoch_progress": (1, 2), "batch_progress": (6, 6)}
    epoch, windows = (SimpleNamespace(current=SimpleNamespace(processed=p, ready=r)) for p, r in progress.values())
    run.trainer.ckpt_path, run.trainer.current_epoch = "last.ckpt", 1
    run.trainer.fit_loop = SimpleNamespace(epoch_progress=epoch, epoch_loop=SimpleNamespace(batch_progress=windows))
    run.progress.on_train_start(run.trainer, run.module)
    run.epoch(clock, 1, first_step=6)
    assert run.texts()[0] == "resuming at epoch 2 of 3, step 7 of 10: last.ckpt"
    live = [text for text in run.texts() if text.startswith("epoch 2/3")]
    assert " 6/10" in live[0] and any(" 8/10" in text and "ETA >0:00:24" in text for text in live)
    row = next(text.split() for text in run.texts() if text.lstrip().startswith("2/3 "))
    assert row[-1] == "0:00:50"  # an epoch of 10 steps of 2 s and a validation of 30 s


def test_progress__shows_its_line_again_after_a_validation_within_an_epoch(clock: Clock) -> None:
    run = Run(width=120)
    run.progress.on_train_epoch_start(run.trainer, run.module)
    run.progress.on_validation_start(run.trainer, run.module)
    run.progress.on_validation_end(run.trainer, run.module)
    run.progress.on_train_batch_start(run.trainer, run.module, None, 5)
    run.progress.on_train_batch_end(run.trainer, run.module, None, [None] * 16, 5)
    assert any(text.startswith("epoch 1/3") and " 6/10" in text for text in run.texts())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_progress__fits_the_terminal(clock: Clock, width: int) -> None:
    run = Run(width)
    run.progress.on_train_start(run.trainer, run.module)
    for number in range(NUM_EPOCHS):
        run.epoch(clock, number)
    texts = run.texts()
    assert max(map(len, texts)) <= width
    assert not any("…" in text for text in texts)
    live = [text for text in texts if "img/s" in text and "ETA" in text and "/10" in text]
    assert live
    assert all(("box" in text) == (width > 80) for text in live)
    head, row = texts[0], next(text for text in texts if text.lstrip().startswith("1/3 "))
    assert len(head) == len(row)


def test_progress__without_a_terminal_is_one_row_an_epoch(clock: Clock) -> None:
    run = Run(width=80, is_terminal=False)
    run.progress.on_train_start(run.trainer, run.module)
    for number in range(NUM_EPOCHS):
        run.epoch(clock, number)
    assert len(run.texts()) == 1 + NUM_EPOCHS


def test_progress__shares_its_console_with_advice() -> None:
    """Rich writes a line of another console into the live line, not above it."""
    bar = TrainingProgress(Throughput())
    with bar.console.capture() as captured:
        print_advice([Finding("CPU", "8 workers on 2 cores", "lower data.workers to 1", "note")])
    assert "8 workers on 2 cores" in captured.get()


def test_gpu_gib__is_the_peak_not_what_is_held_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 21 * 2**29)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 11 * 2**30)
    assert gpu_gib(torch.device("cuda", 0)) == "10.5"
    assert gpu_gib(torch.device("cpu")) == "-"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (3723.4, "1:02:03"), (360_000, "100:00:00")])
def test_format_duration__never_grows_beyond_its_column(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_rows__that_nobody_reads_do_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken_pipe(*args: object, **kwargs: object) -> None:
        raise SystemExit(1)  # as rich's Console.on_broken_pipe

    run = Run(width=80)
    monkeypatch.setattr(run.console, "print", broken_pipe)
    run.progress.on_train_start(run.trainer, run.module)
    run.progress.on_train_epoch_end(run.trainer, run.module)
    assert caplog.messages[-1] == "nobody reads the output any more: training continues without it"
