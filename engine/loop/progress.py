"""The progress of training in the terminal: a live line for the epoch, a table row for each finished epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import ceil, isnan, nan
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from engine.loop.throughput import Throughput
from engine.memory.units import GIB

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.25
BAR_WIDTH = 16
COLUMNS = {  # name: width; a row fits a terminal of 80 characters
    "epoch": 9,
    "box": 6,
    "cls": 6,
    "dfl": 6,
    "mAP50": 6,
    "mAP50-95": 8,
    "img/s": 6,
    "wait": 4,
    "GPU GiB": 7,
    "ETA": 8,
}


class TrainingProgress(ProgressBar):
    """Shows losses, images/s, GPU memory, the share of time spent waiting for data, and the time to the end."""

    def __init__(self, throughput: Throughput, max_steps: int = -1) -> None:
        """Show a run that ends after ``max_steps`` optimizer steps; -1 for no limit."""
        super().__init__()
        self.throughput = throughput
        self.max_steps = max_steps
        self.console = get_console()  # shared with advice, whose lines then appear above the live line
        self._enabled = True
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._refreshed = 0.0
        self._epoch: int | None = None
        self._epoch_started = 0.0
        self._first_step = 0  # of this epoch in this process: a run may resume within an epoch
        self._pause_seconds: float | None = None  # of an epoch outside its steps: start of the loader, validation

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print where a resumed run continues, and the head of the table."""
        if self._enabled:
            if trainer.ckpt_path is not None:
                self._print(f"resuming at {_position(trainer)}: {trainer.ckpt_path}")
            self._print(_row(tuple(COLUMNS)), style="bold")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the live line."""
        self._begin_epoch(trainer, 0)
        self._open_epoch(trainer, 0, "waiting for the first images")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Open the live line after a resume, or a validation, within an epoch."""
        if self._epoch != trainer.current_epoch:
            self._begin_epoch(trainer, batch_idx)
        if self._live is None:
            self._open_epoch(trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the live line, at most a few times a second."""
        self._advance(batch_idx + 1, lambda: self._live_text(trainer, pl_module, batch_idx + 1))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show validation in the live line."""
        self._open("validation", int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Move the live line."""
        self._advance(batch_idx + 1, lambda: "")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the live line."""
        self._close()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's row."""
        self._close()
        if self._epoch == trainer.current_epoch:  # a resumed run may only validate
            num_steps = int(trainer.num_training_batches) - self._first_step
            in_steps_seconds = self.throughput.seconds_per_step * num_steps
            self._pause_seconds = max(time.monotonic() - self._epoch_started - in_steps_seconds, 0.0)
        if self._enabled:
            self._print(_row(self._cells(trainer, pl_module)))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the live line."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the live line."""
        self._close()

    def _print(self, row: str, style: str | None = None) -> None:
        """Print a row; training continues if nobody reads the output, as behind ``| head`` or in a lost terminal."""
        try:
            self.console.print(row, style=style, highlight=False, soft_wrap=True)
        except SystemExit:  # rich raises it for a broken pipe, after it has redirected the output
            log.warning("nobody reads the output any more: training continues without it")

    def _begin_epoch(self, trainer: L.Trainer, first_step: int) -> None:
        self._epoch, self._first_step = trainer.current_epoch, first_step
        self._epoch_started = time.monotonic()

    def _open_epoch(self, trainer: L.Trainer, num_steps_done: int, text: str = "") -> None:
        description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._open(description, int(trainer.num_training_batches), text, num_steps_done)

    def _open(self, description: str, total: int, text: str = "", completed: int = 0) -> None:
        self._close()
        if not self._enabled or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._live = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self._task = self._live.add_task(description, total=total, completed=completed, text=text)
        self._text_width = self.console.width - len(f"{description}  {total}/{total}  ") - BAR_WIDTH
        self._live.start()
        self._refreshed = 0.0  # shows the first step at once

    def _advance(self, completed: int, text: Callable[[], str]) -> None:
        now = time.monotonic()
        if self._live is None or self._task is None or now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        self._live.update(self._task, completed=completed, text=text(), refresh=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def _live_text(self, trainer: L.Trainer, module: L.LightningModule, num_steps_done: int) -> str:
        parts = []
        if module.last_outcome is not None:
            losses = {name: getattr(module.last_outcome, f"{name}_loss") for name in ("box", "cls", "dfl")}
            parts.append(" ".join(f"{name} {value:.2f}" for name, value in losses.items()))
        if self.throughput.seconds_per_step:
            parts += [f"{self.throughput.images_per_second:.0f} img/s", f"wait {self.throughput.data_wait_share:.0%}"]
        if module.device.type == "cuda":
            parts.append(f"{gpu_gib(module.device)} GiB")
        if self.throughput.seconds_per_step:
            parts.append(f"ETA {self._eta(trainer, trainer.current_epoch, num_steps_done)}")
        text = "  ".join(parts)
        if len(text) > self._text_width and module.last_outcome is not None:
            text = "  ".join(parts[1:])  # the epoch's row has the losses too
        return text

    def _cells(self, trainer: L.Trainer, module: Any) -> tuple[str, ...]:
        metrics = trainer.callback_metrics | module.epoch_statistics.summary()  # the former are of the last epoch
        return (
            f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            *(f"{float(metrics[f'train/{name}_loss']):.2f}" for name in ("box", "cls", "dfl")),
            *(_score(float(metrics.get(key, nan))) for key in ("val/map50", "val/map50_95")),
            f"{self.throughput.images_per_second:.0f}",
            f"{self.throughput.data_wait_share:.0%}",
            gpu_gib(module.device),
            self._eta(trainer, trainer.current_epoch + 1, 0),
        )

    def _eta(self, trainer: L.Trainer, num_epochs_done: int, num_steps_done: int) -> str:
        """Estimate the time to the end; ``>`` in the first epoch, which does not know how long a validation takes."""
        steps_per_epoch = int(trainer.num_training_batches)
        num_steps = steps_per_epoch * (trainer.max_epochs - num_epochs_done) - num_steps_done
        if self.max_steps >= 0:
            num_steps = min(num_steps, max(self.max_steps - trainer.global_step, 0))
        num_pauses = ceil((num_steps_done + num_steps) / steps_per_epoch)
        seconds = num_steps * self.throughput.seconds_per_step + num_pauses * (self._pause_seconds or 0.0)
        for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):
            seconds = min(seconds, timer.time_remaining() or 0.0)
        return f"{'>' if self._pause_seconds is None else ''}{format_duration(seconds)}"


def _position(trainer: L.Trainer) -> str:
    """Describe where a resumed run continues; people count from 1."""
    epoch, windows = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    place = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
    if epoch.processed == epoch.ready:
        return place
    num_steps = int(trainer.num_training_batches)
    if windows.processed >= num_steps:
        return f"{place}, validation"
    return f"{place}, step {windows.processed + 1} of {num_steps}"


def format_duration(seconds: float) -> str:
    """Format as hours, minutes and seconds, such as ``1:02:03`` or, after four days, ``100:00:00``."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _score(score: float) -> str:
    """Format a score; a dash if there was no validation, or no object in it."""
    return "-" if isnan(score) else f"{score:.4f}"


def gpu_gib(device: torch.device) -> str:
    """Return the peak allocated memory of the device in GiB; a dash without a GPU."""
    return f"{torch.cuda.max_memory_allocated(device) / GIB:.1f}" if device.type == "cuda" else "-"


def _row(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))
