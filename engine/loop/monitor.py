"""Watches memory during training, and compares it with the plan afterwards.

It writes ``memory.csv`` and TensorBoard's scalars, draws ``memory.png`` and ``memory_breakdown.png``, and prints the
predicted peak, the measured peak and the error in one line. It never waits for the device. It skips rows while
sampling takes more than `OVERHEAD_SHARE` of the run.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from engine.errors import TrainingError
from engine.memory.allocator import dump_snapshot, record_allocations
from engine.memory.config import MemoryConfig
from engine.memory.guard import SpillGuard, SpillReport
from engine.memory.probe import MemorySample, Probe, context_bytes, open_probe
from engine.memory.units import GIB
from engine.planning.choose import Recommendation
from engine.report.memory_log import (
    OOM_RECOVERY,
    OUT_OF_MEMORY,
    RESUMED,
    SPILL,
    VALIDATION,
    MemoryLog,
    Phase,
    is_gpu,
    phase_table,
    read_memory_log,
    summary_line,
)
from engine.report.memory_plots import draw_breakdown, draw_timeline
from engine.run.logs import MetricsCsv

log = logging.getLogger(__name__)
OVERHEAD_SHARE = 0.005


class MemoryMonitor(L.Callback):
    """Samples memory after each step, reports spills, and draws the run."""

    def __init__(
        self,
        config: MemoryConfig = MemoryConfig(),  # noqa: B008  frozen
        *,
        plan: Recommendation | None = None,
        budget_bytes: int | None = None,
        probe: Probe | None = None,
    ) -> None:
        """Watch a run.

        Args:
            config: What to do about a spill, and whether to record allocations.
            plan: The predicted memory, if there is a plan.
            budget_bytes: What training may use, for the picture.
            probe: Samples memory; by default, that of the module's device.
        """
        self.config = config
        self.plan = plan
        self.budget_bytes = budget_bytes
        self.probe: Any = probe
        self.guard = SpillGuard()
        self._log: MemoryLog | None = None
        self._is_running = False
        self._events: list[str] = []
        self._records_allocations = False

    def mark(self, event: str) -> None:
        """Write an event, such as ``oom recovery``, with the next row."""
        self._events.append(event)
        if self._records_allocations and event in (OOM_RECOVERY, OUT_OF_MEMORY):
            path = self._path.with_name(f"{self._path.stem}_snapshot.pickle")
            try:
                dump_snapshot(path)
            except OSError as error:
                _warn_of_disk(path, error, "training continues")

    def mark_recovery(self, sentence: str) -> None:
        """Mark that memory ran out and the step is repeated with less: `RecoveryHooks.on_recovery`."""
        self.mark(OOM_RECOVERY)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learn the run folder, which the first process has chosen."""
        self.folder = Path(trainer.strategy.broadcast(trainer.default_root_dir))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the log."""
        # Each process writes the memory of its device; the first one draws.
        name = "memory.csv" if trainer.is_global_zero else f"memory.rank{trainer.global_rank}.csv"
        self._path = self.folder / name
        self._num_earlier_rows = 0
        self._open_log(trainer.global_step)
        self.probe = self.probe or open_probe(pl_module.device)
        self._records_allocations = self.config.snapshot_on_oom and pl_module.device.type == "cuda"
        if self._records_allocations:
            record_allocations()
        self._num_images = 0
        self._scalars_due_step = 0
        self._started = self._row_written = time.perf_counter()
        self._sampling_seconds = 0.0
        self._step_ended: float | None = None
        self._sample = self.probe()
        self._is_running = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ignore the pause for validation."""
        self._step_ended = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Note that the window has arrived."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample memory and look for a spill."""
        now = time.perf_counter()
        self._num_images += len(batch)
        self._sample_if_cheap(trainer, "train")
        if self._step_ended is not None:
            waited_seconds = self._step_started - self._step_ended
            report = self.guard.observe(self._sample, now - self._step_started, waited_seconds)
            if report is not None:
                self._react(report, trainer, pl_module)
        self._step_ended = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the start of a validation."""
        if self._is_running:
            self.mark(VALIDATION)
            self._write_row(trainer, "train")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Sample memory."""
        if self._is_running:
            self._num_images += len(batch)
            self._sample_if_cheap(trainer, "validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample memory at the end of the phase, and ignore the pause."""
        if self._is_running:
            self._write_row(trainer, "validation")
            self._step_ended = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the pictures and print the summary."""
        self._finish(trainer, pl_module.device)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Draw the pictures although the run has failed."""
        if isinstance(exception, torch.OutOfMemoryError):
            self.mark(OUT_OF_MEMORY)
        if isinstance(exception, torch.AcceleratorError):
            self.probe = lambda: self._sample  # CUDA no longer answers, and people must see its error
        self._finish(trainer, pl_module.device)

    def _open_log(self, num_steps_behind: int) -> None:
        try:
            self._log = MemoryLog(self._path, num_steps_behind)
        except OSError as error:
            _warn_of_disk(self._path, error, "no rows are written; training continues")
            return
        self._num_earlier_rows = self._log.num_earlier_rows
        if self._num_earlier_rows:
            self.mark(RESUMED)

    def _sample_if_cheap(self, trainer: L.Trainer, phase: Phase) -> None:
        allowed_seconds = OVERHEAD_SHARE * (time.perf_counter() - self._started)
        if self._sampling_seconds <= allowed_seconds or self._events:
            self._write_row(trainer, phase)

    def _write_row(self, trainer: L.Trainer, phase: Phase) -> None:
        begun = time.perf_counter()
        self._sample = self.probe()
        seconds = begun - self._row_written
        images_per_second = self._num_images / seconds if self._num_images and seconds > 0 else None
        if self._log is not None:
            try:
                self._log.write(trainer.global_step, phase, self._sample, images_per_second, self._events)
            except OSError as error:
                self._log.close()
                self._log = None
                _warn_of_disk(self._path, error, "no more rows are written; training continues")
        self._events.clear()
        self._num_images, self._row_written = 0, begun
        self._sampling_seconds += time.perf_counter() - begun
        # Not counted: the user chooses its rate, and opening TensorBoard takes as long as 1000 samples.
        if trainer.global_step >= self._scalars_due_step:
            _log_scalars(trainer, self._sample, images_per_second)
            self._scalars_due_step = trainer.global_step + trainer.log_every_n_steps

    def _react(self, report: SpillReport, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.mark(SPILL)
        sentence = report.sentence(module.micro_batch_size)
        if self.config.on_spill == "stop":
            raise TrainingError(sentence)
        log.warning(sentence)
        if self.config.on_spill == "adapt":
            log.warning("memory.on_spill: adapt: %s", module.ask_for_less("VRAM is spilling"))
            self.guard.rearm()

    def _finish(self, trainer: L.Trainer, device: torch.device) -> None:
        if not self._is_running:
            return
        self._write_row(trainer, "train")
        self._is_running = False
        if self._log is None:
            return
        self._log.close()
        if trainer.is_global_zero:
            self._report(device)

    def _report(self, device: torch.device) -> None:
        columns = read_memory_log(self._path)
        # The plan is for a GPU and cannot be compared with the RAM of a process.
        planned_bytes = self.plan.peak_bytes if self.plan is not None and is_gpu(columns) else None
        budget_bytes = self.budget_bytes if is_gpu(columns) else None
        try:
            draw_timeline(columns, self.folder / "memory.png", budget_bytes, planned_bytes)
            if self.plan is not None:
                draw_breakdown(self.plan.components, self.folder / "memory_breakdown.png", self.budget_bytes)
        except OSError as error:
            _warn_of_disk(self.folder, error, "the pictures of memory are missing")
        ours = {name: values[self._num_earlier_rows :] for name, values in columns.items()}
        if is_gpu(ours):
            print("\n".join(phase_table(ours)))
        print(summary_line(ours, planned_bytes, context_bytes(device)))


def _warn_of_disk(path: Path, error: OSError, consequence: str) -> None:
    log.warning("%s: cannot be written (%s): %s; make room on this disk", path, error.strerror, consequence)


def _log_scalars(trainer: L.Trainer, sample: MemorySample, images_per_second: float | None) -> None:
    """Log to TensorBoard and added loggers; ``metrics.csv`` is left out because ``memory.csv`` has the values."""
    kinds = ("allocated", "reserved", "peak", "used")
    sizes = {f"{kind}_gib": getattr(sample, f"{kind}_bytes") for kind in kinds}
    values = {name: num_bytes / GIB for name, num_bytes in sizes.items() if num_bytes is not None}
    values |= {
        "utilization_percent": sample.utilization_percent,
        "temperature_c": sample.temperature_c,
        "images_per_second": images_per_second,
    }
    scalars = {f"memory/{name}": value for name, value in values.items() if value is not None}
    for logger in trainer.loggers:
        if not isinstance(logger, MetricsCsv):
            logger.log_metrics(scalars, step=trainer.global_step)
