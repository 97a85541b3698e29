from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.errors import TrainingError
from engine.loop import monitor as monitor_module
from engine.loop.monitor import OVERHEAD_SHARE, MemoryMonitor
from engine.memory.config import MemoryConfig
from engine.memory.guard import STEPS_IN_A_ROW
from engine.memory.probe import MemorySample
from engine.memory.units import GIB
from engine.report.memory_log import (
    EVENT,
    PHASE,
    SPEED,
    STEP,
    TIME,
    USED,
    MemoryLog,
    has_event,
    read_memory_log,
)
from engine.run.logs import MetricsCsv

STEPS_PER_EPOCH, BATCH_SIZE = 10, 4
USED_BYTES = 12 * GIB


class Clock:
    """Time passes only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


class Steps(L.LightningModule):
    """Training that only takes time."""

    def __init__(self, clock: Clock, step_seconds: Callable[[int], float] = lambda step: 0.1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.micro_batch_size = 32
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock = clock
        self.step_seconds = step_seconds
        self.on_step: Callable[[int], None] = lambda step: None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.on_step(self.global_step)
        self.clock.seconds += self.step_seconds(self.global_step)
        self.optimizers().step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.seconds += 0.5


class Images(Dataset[Tensor]):
    """Images whose loading takes time."""

    def __init__(self, clock: Clock, seconds: Callable[[int], float] = lambda index: 0.0) -> None:
        self.clock = clock
        self.seconds = seconds

    def __len__(self) -> int:
        return STEPS_PER_EPOCH * BATCH_SIZE

    def __getitem__(self, index: int) -> Tensor:
        self.clock.seconds += self.seconds(index)
        return torch.zeros(1)


class RecordingLogger(Logger):
    name, version = "recording", ""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, metrics))

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        pass


@dataclass
class FakePlan:
    peak_bytes: int = int(11.5 * GIB)
    components: dict[str, int] = field(default_factory=lambda: {"activations": 10 * GIB, "weights": int(1.5 * GIB)})


def gpu_probe() -> MemorySample:
    return MemorySample(
        allocated_bytes=GIB,
        reserved_bytes=11 * GIB,
        peak_bytes=int(10.5 * GIB),
        used_bytes=USED_BYTES,
        total_bytes=16 * GIB,
        utilization_percent=97,
        temperature_c=66,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitor_module, "time", clock)
    return clock


def fit(
    folder: Path,
    module: Steps,
    monitor: MemoryMonitor,
    *loggers: Logger,
    epochs: int = 2,
    ckpt_path: Path | None = None,
    images: Dataset[Tensor] | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    loader = DataLoader(images or Images(module.clock), batch_size=BATCH_SIZE)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[monitor, *callbacks],
        logger=list(loggers),
        default_root_dir=folder,
        num_sanity_val_steps=1,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_monitor__writes_a_row_per_step_and_marks_validations(tmp_path: Path, clock: Clock) -> None:
    fit(tmp_path, Steps(clock), MemoryMonitor(probe=gpu_probe))
    columns = read_memory_log(tmp_path / "memory.csv")
    # Per epoch a row per step, one before validation, one per validation batch and one after it; one at the end.
    assert columns[PHASE] == (["train"] * 11 + ["validation"] * 11) * 2 + ["train"]
    marked = [number for number, event in enumerate(columns[EVENT]) if event == "validation"]
    assert marked == [10, 32]
    assert columns[STEP][:10] == [float(step) for step in range(1, 11)]
    assert columns[USED] == [12 * 1024] * len(columns[USED])
    # 4 images a step of 0.1 s, 4 a validation batch of 0.5 s
    assert columns[SPEED][:10] == [40.0] * 10
    assert columns[SPEED][11:21] == [8.0] * 10


def test_monitor__ends_with_pictures_and_one_line(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Steps(clock), MemoryMonitor(plan=FakePlan(), budget_bytes=15 * GIB, probe=gpu_probe))
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    assert (tmp_path / "memory_breakdown.png").stat().st_size > 5_000
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory:")]
    assert lines == [
        "memory: predicted peak 11.5 GiB, measured peak 11.0 GiB "
        "(10.5 GiB allocated, 11.0 GiB reserved, 0 B CUDA), error +4.5%"
    ]


def test_monitor__accounts_for_the_peak_by_phase(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is reserved, 11 GiB throughout, tells nothing: training peaks at 9 GiB, the second validation at 10.5."""
    module = Steps(clock)
    validated = []
    module.validation_step = lambda batch, batch_idx: validated.append(batch_idx)

    def probe() -> MemorySample:
        peak_gib = 10.5 if len(validated) > STEPS_PER_EPOCH + 4 else 9.0
        return replace(gpu_probe(), peak_bytes=int(peak_gib * GIB))

    fit(tmp_path, module, MemoryMonitor(probe=probe))
    head, train, validation, summary = capsys.readouterr().out.splitlines()[-4:]
    assert head.split()[:3] == ["at", "most", "allocated"]
    assert train.split()[:3] == ["train", "9.0", "GiB"]
    assert validation.split()[:3] == ["validation", "10.5", "GiB"]
    assert "10.5 GiB allocated" in summary


def test_monitor__logs_to_all_loggers_but_csv(tmp_path: Path, clock: Clock) -> None:
    recording, csv = RecordingLogger(), MetricsCsv(tmp_path)
    fit(tmp_path, Steps(clock), MemoryMonitor(probe=gpu_probe), csv, recording, epochs=1)
    rows = [(step, metrics) for step, metrics in recording.metrics if "memory/used_gib" in metrics]
    assert [step for step, _ in rows] == [1, 6]  # every `log_every_n_steps`
    assert rows[0][1] == {
        "memory/allocated_gib": 1.0,
        "memory/reserved_gib": 11.0,
        "memory/peak_gib": 10.5,
        "memory/used_gib": 12.0,
        "memory/utilization_percent": 97,
        "memory/temperature_c": 66,
        "memory/images_per_second": pytest.approx(40),
    }
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("probe_seconds", [0.0001, 0.002, 0.02])
def test_monitor__takes_less_than_a_hundredth_of_the_time(tmp_path: Path, clock: Clock, probe_seconds: float) -> None:
    sampling = []

    def slow_probe() -> MemorySample:
        clock.seconds += probe_seconds
        sampling.append(probe_seconds)
        return gpu_probe()

    fit(tmp_path, Steps(clock), MemoryMonitor(probe=slow_probe), epochs=20)
    assert sum(sampling) < 0.01 * (clock.seconds - 100)
    steps = set(read_memory_log(tmp_path / "memory.csv")[STEP])
    if probe_seconds < OVERHEAD_SHARE * 0.1:  # cheap: every step has its row
        assert len(steps) == 20 * STEPS_PER_EPOCH
    else:  # dear: fewer have, but all over the run
        assert len(steps) < 20 * STEPS_PER_EPOCH
        assert max(later - earlier for earlier, later in pairwise(sorted(steps))) <= STEPS_PER_EPOCH


def test_monitor__writes_marks_whatever_the_overhead(tmp_path: Path, clock: Clock) -> None:
    monitor = MemoryMonitor(probe=gpu_probe)
    module = Steps(clock)
    module.on_step = lambda step: monitor.mark("oom recovery") if step in (3, 4) else None
    monitor_module.OVERHEAD_SHARE, share = -1.0, OVERHEAD_SHARE
    try:
        fit(tmp_path, module, monitor, epochs=1)
    finally:
        monitor_module.OVERHEAD_SHARE = share
    columns = read_memory_log(tmp_path / "memory.csv")
    steps = [step for step, event in zip(columns[STEP], columns[EVENT], strict=True) if event == "oom recovery"]
    assert steps == [4, 5]


# What goes unnoticed elsewhere: the driver's count reaches the card's size, steps take 8 times as long.
SPILL_STEP, SLOWDOWN = 12, 8
SPILLING = replace(gpu_probe(), reserved_bytes=int(15.9 * GIB), used_bytes=int(15.8 * GIB))
FULL = replace(gpu_probe(), reserved_bytes=int(14.9 * GIB), used_bytes=int(15.8 * GIB))


def spilling_run(
    tmp_path: Path, clock: Clock, config: MemoryConfig, adapt: Callable[[Steps], str] | None = None
) -> MemoryMonitor:
    """Replay a spill from `SPILL_STEP` on, which lasts as long as the micro-batch is above 16."""
    module = Steps(clock)

    def spills(step: int) -> bool:
        return step >= SPILL_STEP and module.micro_batch_size > 16

    module.step_seconds = lambda step: 0.1 * SLOWDOWN if spills(step) else 0.1
    module.ask_for_less = lambda cause: adapt(module)
    monitor = MemoryMonitor(config, probe=lambda: SPILLING if spills(module.global_step - 1) else gpu_probe())
    fit(tmp_path, module, monitor, epochs=4)
    return monitor


def spill_steps(folder: Path) -> list[float]:
    columns = read_memory_log(folder / "memory.csv")
    return [step for step, spilt in zip(columns[STEP], has_event(columns, "spill"), strict=True) if spilt]


def test_monitor__warns_of_a_spill_once_within_five_steps(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="engine.loop.monitor"):
        spilling_run(tmp_path, clock, MemoryConfig())
    (message,) = (record.getMessage() for record in caplog.records if record.name == "engine.loop.monitor")
    assert message.startswith("VRAM is spilling into system RAM (15.8 GiB of 16.0 GiB in use, ")
    assert "8.0 times as long as before. Lower data.micro_batch_size from 32 to 16" in message
    assert spill_steps(tmp_path) == [SPILL_STEP + STEPS_IN_A_ROW + 1]  # with the row of the next step


def test_monitor__stops_a_spill(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(TrainingError, match=r"^VRAM is spilling into system RAM"):
        spilling_run(tmp_path, clock, MemoryConfig(on_spill="stop"))
    columns = read_memory_log(tmp_path / "memory.csv")
    assert (columns[STEP][-1], columns[EVENT][-1]) == (SPILL_STEP + STEPS_IN_A_ROW, "spill")
    assert (tmp_path / "memory.png").is_file()


def test_monitor__adapts_to_a_spill_until_it_is_over(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def halve(module: Steps) -> str:
        module.micro_batch_size //= 2
        return f"micro-batch {module.micro_batch_size}"

    with caplog.at_level(logging.WARNING, logger="engine.loop.monitor"):
        spilling_run(tmp_path, clock, MemoryConfig(on_spill="adapt"), adapt=halve)
    adaptations = [message for message in caplog.messages if message.startswith("memory.on_spill: adapt: ")]
    assert adaptations == ["memory.on_spill: adapt: micro-batch 16"]
    assert clock.seconds < 100 + 40 * 0.1 + STEPS_IN_A_ROW * 0.7 + 40 * 0.5 + 1  # only five steps were slow


def test_monitor__adapts_again_if_it_did_not_help_and_ends_when_nothing_is_left(tmp_path: Path, clock: Clock) -> None:
    steps_of_calls = []

    def adapt(module: Steps) -> str:
        steps_of_calls.append(module.global_step)
        if len(steps_of_calls) == 3:
            raise TrainingError("micro-batch 1 at model.recompute block does not fit: lower data.image_size")
        return "model.recompute block"

    with pytest.raises(TrainingError, match=r"lower data\.image_size"):
        spilling_run(tmp_path, clock, MemoryConfig(on_spill="adapt"), adapt=adapt)
    first = SPILL_STEP + STEPS_IN_A_ROW
    # The first step of an epoch is not judged: it starts the loader.
    assert steps_of_calls == [first, first + STEPS_IN_A_ROW + 1, first + 2 * STEPS_IN_A_ROW + 1] == [17, 23, 28]
    assert (tmp_path / "memory.png").is_file()


class Checkpoints(L.Callback):
    """Pauses of 5 s: within an epoch after every fourth step, and at its end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step % 4 == 0:
            self.clock.seconds += 5

    def on_train_epoch_end(self, *args: object) -> None:
        self.clock.seconds += 5


@pytest.mark.parametrize("cause", ["validation", "checkpoint", "loader"])
def test_monitor__takes_no_pause_for_a_spill(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """A full card at full speed is a good plan; validations of 5 s, and slow files or saving, change nothing."""
    slow_files = Images(clock, lambda index: 1.0 if clock.seconds > 115 else 0.0)  # from the third epoch on
    with caplog.at_level(logging.WARNING, logger="engine.loop.monitor"):
        fit(
            tmp_path,
            Steps(clock),
            MemoryMonitor(MemoryConfig(on_spill="stop"), probe=lambda: FULL),
            epochs=5,
            images=slow_files if cause == "loader" else None,
            callbacks=[Checkpoints(clock)] if cause == "checkpoint" else [],
        )
    assert caplog.messages == []
    assert spill_steps(tmp_path) == []


def test_monitor__draws_after_an_error_too(tmp_path: Path, clock: Clock) -> None:
    def fail(step: int) -> None:
        if step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    module = Steps(clock)
    module.on_step = fail
    with pytest.raises(torch.OutOfMemoryError):
        fit(tmp_path, module, MemoryMonitor(probe=gpu_probe))
    assert read_memory_log(tmp_path / "memory.csv")[EVENT][-1] == "out of memory"
    assert (tmp_path / "memory.png").is_file()


def test_monitor__goes_on_in_the_log_of_a_resumed_run(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = replace(gpu_probe(), peak_bytes=14 * GIB, reserved_bytes=15 * GIB)
    first = fit(tmp_path, Steps(clock), MemoryMonitor(probe=lambda: larger), epochs=1)
    first.save_checkpoint(tmp_path / "last.ckpt")
    capsys.readouterr()
    fit(tmp_path, Steps(clock), MemoryMonitor(probe=gpu_probe), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    text = (tmp_path / "memory.csv").read_text()
    assert text.count("timestamp") == 1
    columns = read_memory_log(tmp_path / "memory.csv")
    assert len(columns[STEP]) == 2 * 23
    assert [row for row, resumed in enumerate(has_event(columns, "resumed")) if resumed] == [23]
    assert columns[TIME] == sorted(columns[TIME])
    assert "measured peak 11.0 GiB" in capsys.readouterr().out  # of this part of the run, as the plan is


def test_monitor__trains_on_when_the_disk_is_full(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module, append = Steps(clock), MemoryLog._append
    monkeypatch.setattr(MemoryLog, "_append", lambda *args: fail() if module.global_step > 5 else append(*args))
    with caplog.at_level(logging.WARNING, logger="engine.loop.monitor"):
        trainer = fit(tmp_path, module, MemoryMonitor(probe=gpu_probe))
    assert trainer.global_step == 20
    (message,) = caplog.messages
    assert "memory.csv: cannot be written (No space left on device): no more rows" in message
    assert read_memory_log(tmp_path / "memory.csv")[STEP][-1] == 5


def test_monitor__trains_on_when_the_log_cannot_be_begun(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "memory.csv").mkdir()
    with caplog.at_level(logging.WARNING, logger="engine.loop.monitor"):
        trainer = fit(tmp_path, Steps(clock), MemoryMonitor(probe=gpu_probe), epochs=1)
    assert trainer.global_step == STEPS_PER_EPOCH
    assert len(caplog.messages) == 1 and "no rows are written" in caplog.messages[0]


def test_monitor__leaves_a_snapshot_of_each_out_of_memory(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped = []
    monkeypatch.setattr(monitor_module, "record_allocations", lambda: dumped.append("recording"))
    monkeypatch.setattr(monitor_module, "dump_snapshot", lambda path: dumped.append(path.name))
    monkeypatch.setattr(Steps, "device", torch.device("cuda", 0))
    monkeypatch.setattr(monitor_module, "context_bytes", lambda device: GIB)
    monitor = MemoryMonitor(MemoryConfig(snapshot_on_oom=True), probe=gpu_probe)
    module = Steps(clock)
    module.on_step = lambda step: monitor.mark("oom recovery") if step == 3 else None
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(is_global_zero=True, global_step=0, strategy=strategy, default_root_dir=tmp_path)
    monitor.setup(trainer, module, "fit")
    monitor.on_train_start(trainer, module)
    monitor.mark("validation")
    assert dumped == ["recording"]
    monitor.mark("oom recovery")
    assert dumped == ["recording", "memory_snapshot.pickle"]


def test_monitor__shows_the_error_of_a_device_that_is_lost(tmp_path: Path, clock: Clock) -> None:
    module = Steps(clock)

    def fail(step: int) -> None:
        if step == 5:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    def probe() -> MemorySample:
        if module.global_step >= 5:
            raise RuntimeError("CUDA does not answer")
        return gpu_probe()

    module.on_step = fail
    monitor = MemoryMonitor(probe=lambda: gpu_probe())
    module.on_step = lambda step: (setattr(monitor, "probe", probe), fail(step)) if step == 5 else None
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        fit(tmp_path, module, monitor)
    assert (tmp_path / "memory.png").is_file()


def test_monitor__logs_the_process_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Steps(Clock())
    monitor = MemoryMonitor(plan=FakePlan(), budget_bytes=15 * GIB)
    fit(tmp_path, module, monitor, epochs=1)
    columns = read_memory_log(tmp_path / "memory.csv")
    assert min(columns[USED]) > 100  # MiB: torch alone takes more
    output = capsys.readouterr().out
    assert "memory: the process held at most " in output and "predicted" not in output
    assert (tmp_path / "memory.png").is_file()
