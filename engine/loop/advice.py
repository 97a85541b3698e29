"""Advice while people wait for a run: what the doctor finds at the start, and who sets the pace in training.

Only what is worth a change is said, a line each; ``python -m engine.doctor`` shows everything.
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
"""Steps at the start whose waiting says nothing: workers start, files are not in the system's cache."""
RELIEF_SHARE = DATA_BOUND_SHARE / 2
"""Share of waiting below which training counts as no longer data-bound: not at the first step below the limit."""


def advise_before(config: Any, stride_px: int = STRIDE_PX) -> list[Finding]:
    """What this machine lacks for a parsed configuration: problems first, then notes.

    The network's largest stride is ``stride_px``.

    Of a machine's GPUs only the one that this process trains on is looked at.
    """
    device = device_of(config.trainer)
    machine, needs = examine_machine([device] if device.type == "cuda" else []), needs_of(config, stride_px)
    findings = check_needs(machine, needs)
    if needs.accelerator != "cpu":
        findings = check_machine(machine) + findings
    return [finding for severity in ("problem", "note") for finding in findings if finding.severity == severity]


def print_advice(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Show findings as short lines: what, evidence and remedy; above a live line, if there is one."""
    console = console or get_console()
    for finding in findings:
        line = Text(f"{finding.severity}: ", style=STYLES[finding.severity])
        line.append(f"{finding.what}: {finding.evidence}", style="none")
        if finding.remedy:
            line.append(f": {finding.remedy}", style="cyan")
        console.print(line, soft_wrap=not console.is_terminal)  # a file gets whole lines


class PaceAdvisor(L.Callback):
    """Says whether the loader or the device sets the pace: once it is known, and when that changes.

    It looks at the loader that is at work, never at what was asked for: workers come and go between epochs
    (`engine.loop.workers`), a cache may be filling, have no room or be given up.
    """

    def __init__(self, throughput: Throughput, console: Console | None = None) -> None:
        """Advise a run.

        Args:
            throughput: Measures the waiting; to stand before this callback in the trainer's list.
            console: Where the lines go; by default, that of the terminal.
        """
        self.throughput = throughput
        self.console = console
        self.findings: list[Finding] = []
        """Everything that was said, for reports."""
        self._is_data_bound: bool | None = None
        self._loader: LoaderInUse | None = None
        self._num_steps_before = 0  # with another loader: their waiting says nothing about this one

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notice that the loader is another one, or its cache full, and judge it anew."""
        loader: LoaderInUse = trainer.datamodule.loader_in_use()
        if loader != self._loader:
            self._loader, self._num_steps_before = loader, self.throughput.num_steps_measured
            self._is_data_bound = self._is_data_bound and None  # what was said of a loader that sufficed, holds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the last steps, once they are all from after the warm-up of this loader."""
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
