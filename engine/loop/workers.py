"""Says what the loader takes, and adapts ``data.workers: auto`` between epochs.

More processes if training waited for images, fewer if RAM is short.
"""

from __future__ import annotations

import lightning as L
from rich import get_console
from rich.console import Console

from data.loading.ram_plan import next_workers
from engine.loop.advice import WARM_UP_STEPS
from engine.loop.datamodule import DetectionData
from engine.loop.throughput import WINDOW_STEPS, Throughput
from engine.memory.host import available_cores, ram_available_bytes


class WorkerAdapter(L.Callback):
    """Gives the next epoch another number of workers, where the user left it to us.

    Images, their order and their augmentation do not depend on the number of workers. Lightning rebuilds the loader;
    caches stay. All processes of a run decide as the first one does: they rebuild together.
    """

    def __init__(self, throughput: Throughput, console: Console | None = None) -> None:
        """Adapt a run.

        Args:
            throughput: Measures the waiting.
            console: Where the lines go; by default, that of the terminal.
        """
        self.throughput = throughput
        self.console = console or get_console()
        self._steps_judged = WARM_UP_STEPS  # their waiting says nothing about the workers that there are now
        self._reload_every: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was planned, and why."""
        self._print(trainer, trainer.datamodule.loading.describe())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the epoch; if another number is better, have the loader rebuilt."""
        data: DetectionData = trainer.datamodule
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not data.has_auto_workers or is_last:
            return
        before, share = data.loading.workers, self._stall_share()
        is_memory_short = ram_available_bytes() < data.loading.floor_bytes
        cores = available_cores() // max(trainer.num_devices, 1)
        wanted = trainer.strategy.broadcast(next_workers(share, before, cores, is_memory_short))
        if not trainer.strategy.broadcast(wanted != before and data.change_workers(wanted)):
            return
        self._steps_judged = self.throughput.num_steps_measured + WARM_UP_STEPS
        self._reload_every, trainer.reload_dataloaders_every_n_epochs = trainer.reload_dataloaders_every_n_epochs, 1
        why = "RAM is short" if is_memory_short else f"training waited {share:.0%} of the time"
        self._print(trainer, f"loader: {data.loading.workers} workers instead of {before}: {why}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The loader is new: keep it."""
        if self._reload_every is not None:
            trainer.reload_dataloaders_every_n_epochs, self._reload_every = self._reload_every, None

    def _print(self, trainer: L.Trainer, line: str) -> None:
        if trainer.is_global_zero:
            self.console.print(line, soft_wrap=True, highlight=False)

    def _stall_share(self) -> float:
        """Of the last steps, once they are all of the workers that there are now; else 0."""
        num_new_steps = self.throughput.num_steps_measured - self._steps_judged
        return self.throughput.data_wait_share if num_new_steps >= WINDOW_STEPS else 0.0
