"""What a person sees while training runs: a live line for the epoch at hand, a table row for each one done."""

from __future__ import annotations

import time
from datetime import timedelta
from math import nan
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from engine.throughput import Throughput

GIB = 1024**3
REFRESH_SECONDS = 0.25
COLUMNS = {  # name: width; a row fits a terminal of 80 characters
    "epoch": 7,
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
    """Losses, images/s, GPU memory, share of time spent waiting for data, and time to the end of the run."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput
        self.console = Console()
        self._enabled = True
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._refreshed = 0.0

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the head of the table."""
        if self._enabled:
            self.console.print(_row(tuple(COLUMNS)), style="bold", highlight=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the live line."""
        self._open(trainer, trainer.num_training_batches, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the live line, a few times a second at most."""
        self._advance(batch_idx + 1, lambda: self._live_text(trainer, pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show validation in the live line."""
        self._open(trainer, sum(trainer.num_val_batches), "validation")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the live line."""
        self._advance(batch_idx + 1, lambda: "")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the live line."""
        self._close()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's row."""
        self._close()
        if self._enabled:
            self.console.print(_row(self._cells(trainer, pl_module)), highlight=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def _open(self, trainer: L.Trainer, total: int | float, description: str) -> None:
        self._close()
        if not self._enabled or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._live = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self._task = self._live.add_task(description, total=total, text="")
        self._live.start()

    def _advance(self, completed: int, text: Any) -> None:
        now = time.monotonic()
        if self._live is None or now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        self._live.update(self._task, completed=completed, text=text(), refresh=True)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def _live_text(self, trainer: L.Trainer, module: L.LightningModule) -> str:
        outcome = module.last_outcome
        losses = (
            f"box {outcome.box_loss:.2f} cls {outcome.cls_loss:.2f} dfl {outcome.dfl_loss:.2f}  " if outcome else ""
        )
        speed = f"{self.throughput.images_per_second:.0f} img/s  wait {self.throughput.data_wait_share:.0%}"
        memory = f"  {gpu_gib(module.device)} GiB" if module.device.type == "cuda" else ""
        return f"{losses}{speed}{memory}  ETA {self._eta(trainer)}"

    def _cells(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[str, ...]:
        metrics = trainer.callback_metrics | module.epoch_statistics.summary()  # the former's are the last epoch's
        return (
            f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            *(f"{float(metrics[f'train/{name}_loss']):.2f}" for name in ("box", "cls", "dfl")),
            *(f"{float(metrics.get(key, nan)):.4f}" for key in ("val/map50", "val/map50_95")),
            f"{self.throughput.images_per_second:.0f}",
            f"{self.throughput.data_wait_share:.0%}",
            gpu_gib(module.device),
            self._eta(trainer),
        )

    def _eta(self, trainer: L.Trainer) -> str:
        steps = trainer.num_training_batches * trainer.max_epochs - trainer.global_step
        return str(timedelta(seconds=round(max(steps, 0) * self.throughput.seconds_per_step)))


def gpu_gib(device: torch.device) -> str:
    """Peak allocated memory on the device so far in GiB, or a dash without a GPU."""
    return f"{torch.cuda.max_memory_allocated(device) / GIB:.1f}" if device.type == "cuda" else "-"


def _row(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))
