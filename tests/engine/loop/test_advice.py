from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import lightning as L
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.command_line.cli import CommandLine
from engine.loop import advice, throughput
from engine.loop.advice import WARM_UP_STEPS, PaceAdvisor, advise_before, print_advice
from engine.loop.throughput import WINDOW_STEPS, Throughput
from engine.machine.diagnosis import Finding, LoaderInUse, diagnose_throughput
from engine.machine.inventory import Machine, examine_machine
from engine.memory.units import GIB

STEPS_PER_EPOCH, STEP_SECONDS = 40, 0.1
FIRST_VERDICT = WARM_UP_STEPS + WINDOW_STEPS + 2  # the first step of each of two epochs is not measured


class Clock:
    """Time passes only when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


class Images(Dataset[Tensor]):
    """Windows that take time to come, by the number of the step."""

    def __init__(self, clock: Clock, waiting: Callable[[int], float]) -> None:
        self.clock = clock
        self.waiting = waiting
        self.num_loaded = 0

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> Tensor:
        self.num_loaded += 1
        self.clock.seconds += self.waiting(self.num_loaded)
        return torch.zeros(1)


class Steps(L.LightningModule):
    """Training that only takes time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock = clock

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.seconds += STEP_SECONDS
        self.optimizers().step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.seconds += 10


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


STEADY = LoaderInUse(workers=2, cores=8, cache="ram", most_workers=7)


class Data(L.LightningDataModule):
    """A loader that takes its time, and says what it is, by epoch; the last word holds for the epochs after."""

    def __init__(self, images: Images, loaders: Sequence[LoaderInUse]) -> None:
        super().__init__()
        self.images = images
        self.loaders = loaders

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.images, batch_size=1)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.zeros(2, 1))

    def loader_in_use(self) -> LoaderInUse:
        return self.loaders[min(self.trainer.current_epoch, len(self.loaders) - 1)]


def advise(
    clock: Clock,
    waiting: Callable[[int], float],
    num_steps: int,
    loaders: Sequence[LoaderInUse] = (STEADY,),
    **trainer_options: object,
) -> list[str]:
    """What is said in a run whose loader takes `waiting` seconds for the window of each step."""
    measured = Throughput()
    console = Console(file=io.StringIO(), width=200)
    advisor = PaceAdvisor(measured, console)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        max_epochs=-1,
        callbacks=[measured, advisor],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **trainer_options,
    )
    trainer.fit(Steps(clock), datamodule=Data(Images(clock, waiting), loaders))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == len(advisor.findings)
    return lines


def test_pace_advisor__says_once_that_the_loader_sets_the_pace_and_what_to_gain(clock: Clock) -> None:
    (line,) = advise(clock, lambda step: STEP_SECONDS, num_steps=300)
    # Half of the time is waiting: the loader needs 0.2 s a window, four workers would need 0.1 s.
    assert line == (
        "note: pace of training: the loader sets it: training waits for data 50% of the time (2 workers, 8 cores, "
        "cache ram): set data.workers to 4, for which there are cores and RAM: about 2.0 times as fast"
    )


def test_pace_advisor__judges_a_loader_by_its_own_steps(clock: Clock) -> None:
    """Two epochs that fill the cache, which training waits for; then the cache is full, which suffices."""
    before, after = replace(STEADY, is_filling_cache=True), STEADY
    num_slow_steps = 2 * STEPS_PER_EPOCH
    lines = advise(clock, lambda step: 0.1 if step <= num_slow_steps else 0.002, 400, [before, before, after])
    assert len(lines) == 2
    assert "the cache is being filled" in lines[0] and "set data.workers" not in lines[0]
    assert lines[1].startswith("ok: pace of training: the device sets it: training waits for data 2%")


def test_pace_advisor__says_nothing_twice_when_free_ram_changes(clock: Clock) -> None:
    loaders = [replace(STEADY, most_workers=most_workers) for most_workers in (7, 7, 6, 6, 6)]
    assert len(advise(clock, lambda step: STEP_SECONDS, num_steps=400, loaders=loaders)) == 1


def test_pace_advisor__advises_nothing_while_a_cache_fills(clock: Clock) -> None:
    filling, filled = replace(STEADY, is_filling_cache=True), replace(STEADY, cache="ram")
    lines = advise(clock, lambda step: 0.1, 300, [filling, filling, filled])
    assert "the cache is being filled" in lines[0] and "set data." not in lines[0]
    assert "set data.workers to 4" in lines[1] and len(lines) == 2


def test_pace_advisor__says_nothing_twice_of_a_loader_that_suffices(clock: Clock) -> None:
    lines = advise(clock, lambda step: 0.002, 300, [replace(STEADY, is_filling_cache=True)] * 2 + [STEADY])
    assert len(lines) == 1 and "the device sets it" in lines[0]


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        ({}, "set data.workers to 4", "cache to"),
        ({"most_workers": 3}, "set data.workers to 3", "cache to"),
        ({"most_workers": 2}, "lower data.image_size", "set data."),
        ({"workers": 4, "most_workers": 3}, "lower data.image_size", "set data."),
        ({"most_workers": 2, "cache": "none"}, "cache none", "set data."),
        ({"most_workers": 2, "cache": "files"}, "cache files", "set data."),
        ({"most_workers": 2, "cache": "none", "is_cache_given_up": True}, "given up as RAM ran short", "set data."),
        (
            {"most_workers": 2, "cache": "none", "cache_that_fits": "ram"},
            "set data.cache to ram, as all images fit decoded in RAM: about 1.2 times as fast",
            "data.workers",
        ),
        ({"most_workers": 2, "cache": "none", "cache_that_fits": "disk"}, "set data.cache to disk", "data.workers"),
    ],
)
def test_diagnose_throughput__advises_what_can_be_set(changes: dict, said: str, not_said: str) -> None:
    finding = diagnose_throughput(0.5, replace(STEADY, **changes))
    line = f"{finding.evidence}: {finding.remedy}"
    assert said in line and not_said not in line
    assert finding.severity == ("note" if finding.remedy else "ok")


def test_pace_advisor__says_once_that_the_device_sets_the_pace(clock: Clock) -> None:
    (line,) = advise(clock, lambda step: 0.002, num_steps=300)
    assert line.startswith("ok: pace of training: the device sets it: training waits for data 2% of the time")


def test_pace_advisor__says_nothing_before_it_knows(clock: Clock) -> None:
    assert advise(clock, lambda step: STEP_SECONDS, num_steps=FIRST_VERDICT - 1) == []
    assert len(advise(clock, lambda step: STEP_SECONDS, num_steps=FIRST_VERDICT)) == 1


def test_pace_advisor__does_not_mind_a_slow_start(clock: Clock) -> None:
    (line,) = advise(clock, lambda step: 5.0 if step <= WARM_UP_STEPS else 0.002, num_steps=FIRST_VERDICT)
    assert "the device sets it" in line


def test_pace_advisor__says_when_it_changes_and_not_otherwise(clock: Clock) -> None:
    def waiting(step: int) -> float:
        return 0.1 if 150 < step <= 400 else 0.002

    lines = advise(clock, waiting, num_steps=800)
    assert ["device" in line.split(":")[2] for line in lines] == [True, False, True]


def test_pace_advisor__does_not_waver_at_the_limit(clock: Clock) -> None:
    """Waiting of 12 % and 8 % in turn: above and below the limit of 10 %."""
    lines = advise(clock, lambda step: 0.0136 if (step // WINDOW_STEPS) % 2 else 0.0087, num_steps=1000)
    assert len(lines) <= 2 and "the loader sets it" in lines[-1]


def test_pace_advisor__takes_no_validation_for_waiting(clock: Clock) -> None:
    """Validations of 20 s, at the end of an epoch and within it."""
    (line,) = advise(clock, lambda step: 0.002, num_steps=200, val_check_interval=10)
    assert "waits for data 2% of the time" in line


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(**facts: object) -> Machine:
        found = replace(examine_machine(), **facts)
        monkeypatch.setattr(advice, "examine_machine", lambda devices: found)
        return found

    return have


def test_advise_before__is_silent_about_what_is_well(machine: Callable[..., Machine]) -> None:
    machine(gpus=[], cores=8, shm_free_bytes=8 * GIB, ram_available_bytes=16 * GIB)
    findings = advise_before(CommandLine(["--config=configs/quickstart.yaml"]).config)
    assert {finding.what for finding in findings} <= {"disk"}
    on_gpu = CommandLine(["--config=configs/quickstart.yaml", "--trainer.accelerator=auto"]).config
    assert "torch" in {finding.what for finding in advise_before(on_gpu)}
    assert all(finding.severity != "ok" for finding in advise_before(on_gpu))


def test_advise_before__names_problems_first(machine: Callable[..., Machine]) -> None:
    machine(gpus=[], cores=1, shm_free_bytes=2**20, ram_available_bytes=16 * GIB)
    findings = advise_before(CommandLine(["--config=configs/quickstart.yaml"]).config)
    assert findings[0].what == "shared memory" and findings[0].severity == "problem"
    assert "CPU" in {finding.what for finding in findings}
    assert [finding.severity for finding in findings] == sorted((f.severity for f in findings), reverse=True)


def test_print_advice__takes_one_line_a_finding() -> None:
    console = Console(file=io.StringIO(), width=60)
    print_advice([Finding("CPU", "8 workers on 2 cores", "lower data.workers to 1", "note")], console)
    assert console.file.getvalue() == "note: CPU: 8 workers on 2 cores: lower data.workers to 1\n"
