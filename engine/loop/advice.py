"""Advice in one line each: findings of the doctor before a run, and whether the loader or the device sets the pace.

Only what is worth a change is printed; ``python -m engine.doctor`` shows everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
from rich import get_console
from rich.console import Console
from rich.text import Text

from data.loading.sampler import STRIDE_PX
from engine.loop.throughput import WINDOW_STEPS, Throughput
from engine.machine.devices import device_of
from engine.machine.diagnosis import (
    DATA_BOUND_SHARE,
    Finding,
    LoaderInUse,
    check_machine,
    check_needs,
    diagnose_throughput,
    needs_of,
)
from engine.machine.inventory import examine_machine
from engine.machine.show import STYLES

WARM_UP_STEPS = 10
"""Steps at the start that are not judged: workers start, and the system has not cached the files."""
RELIEF_SHARE = DATA_BOUND_SHARE / 2
"""Share of waiting below which training is no longer data-bound; half of the limit, so that advice does not waver."""


def advise_before(config: Any, stride_px: int = STRIDE_PX) -> list[Finding]:
    """Find what this machine lacks for a parsed configuration: problems first, then notes.

    Only the GPU that this process trains on is examined. ``stride_px`` is the largest stride of the network.
    """
    device = device_of(config.trainer)
    machine, needs = examine_machine([device] if device.type == "cuda" else []), needs_of(config, stride_px)
    findings = check_needs(machine, needs)
    if needs.accelerator != "cpu":
        findings = check_machine(machine) + findings
    return [finding for severity in ("problem", "note") for finding in findings if finding.severity == severity]


def print_advice(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print findings as lines of what, evidence and remedy; a live line stays below them."""
    console = console or get_console()
    for finding in findings:
        line = Text(f"{finding.severity}: ", style=STYLES[finding.severity])
        line.append(f"{finding.what}: {finding.evidence}", style="none")
        if finding.remedy:
            line.append(f": {finding.remedy}", style="cyan")
        console.print(line, soft_wrap=not console.is_terminal)  # a file gets whole lines


class PaceAdvisor(L.Callback):
    """Says whether the loader or the device sets the pace: once it is known, and when that changes.

    It judges the cache in use, not the configured one: a cache may still fill, have no room or be given up.
    """

    def __init__(self, throughput: Throughput, console: Console | None = None) -> None:
        """Advise a run; ``throughput`` must stand before this callback in the trainer's list."""
        self.throughput = throughput
        self.console = console
        self.findings: list[Finding] = []
        """All printed findings, for reports."""
        self._is_data_bound: bool | None = None
        self._cache: tuple[str, bool] | None = None
        self._num_steps_before = 0  # steps with another state of the cache

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the loader again if its cache is now full or was given up."""
        loader: LoaderInUse = trainer.datamodule.loader_in_use()
        cache = loader.cache, loader.is_filling_cache
        if cache != self._cache:
            self._cache, self._num_steps_before = cache, self.throughput.num_steps_measured
            if self._is_data_bound:  # a loader that was fast enough still is
                self._is_data_bound = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Judge the last steps, if all of them are later than the warm-up of this loader."""
        num_steps = self.throughput.num_steps_measured - self._num_steps_before
        num_windows, num_more_steps = divmod(num_steps - WARM_UP_STEPS, WINDOW_STEPS)
        if num_windows < 1 or num_more_steps or not trainer.is_global_zero:
            return
        share = self.throughput.data_wait_share
        is_data_bound = share >= (RELIEF_SHARE if self._is_data_bound else DATA_BOUND_SHARE)
        if is_data_bound == self._is_data_bound:
            return
        self._is_data_bound = is_data_bound
        finding = diagnose_throughput(share, trainer.datamodule.loader_in_use())
        self.findings.append(finding)
        print_advice([finding], self.console)
