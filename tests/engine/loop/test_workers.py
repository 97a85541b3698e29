"""``data.workers: auto`` follows what was measured, and changes nothing but the number of processes."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from rich.console import Console

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.fit import main as fit
from engine.loop import workers
from engine.loop.datamodule import DetectionData
from engine.loop.throughput import WINDOW_STEPS
from engine.loop.workers import WorkerAdapter
from engine.machine.diagnosis import LoaderInUse

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # three cores are pretended
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
]
EPOCHS = 4
NUM_IMAGES = 10


class FakeThroughput:
    """Enough steps for a judgment in every epoch."""

    def __init__(self, waiting: float) -> None:
        self.data_wait_share = waiting
        self.num_steps_measured = 0


class Recorder(L.LightningModule):
    """Trains nothing; notes the images of each epoch, and how many workers made them."""

    def __init__(self, throughput: FakeThroughput, steps_per_epoch: int = 2 * WINDOW_STEPS) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.throughput = throughput
        self.steps_per_epoch = steps_per_epoch
        self.seen: list[list[tuple[str, int]]] = []
        self.workers: list[int] = []
        self.in_use: list[LoaderInUse] = []
        self.processes: list[int] = []
        self.foreign = set(multiprocessing.active_children())  # of tests before

    def on_train_epoch_start(self) -> None:
        self.seen.append([])
        self.throughput.num_steps_measured += self.steps_per_epoch
        self.workers.append(self.trainer.train_dataloader.num_workers)
        self.in_use.append(self.trainer.datamodule.loader_in_use())

    def training_step(self, batch: object, batch_idx: int) -> None:
        sums = batch.images.sum(dim=(1, 2, 3), dtype=torch.int64).tolist()
        self.seen[-1] += zip(batch.names, sums, strict=True)

    def on_train_epoch_end(self) -> None:
        self.processes.append(len(set(multiprocessing.active_children()) - self.foreign))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "boards"
    return generate_pcb_dataset(folder, SyntheticConfig(num_train=NUM_IMAGES, num_val=2, image_size=96))


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.loop.datamodule.available_cores", lambda: 2)
    monkeypatch.setattr(workers, "available_cores", lambda: 3)


def run(
    data_yaml: Path, throughput: FakeThroughput, asked: int | str = "auto", cache: str = "none", **changes: object
) -> SimpleNamespace:
    """Train for some epochs of three windows."""
    data = DetectionData(str(data_yaml), 4, 4, 64, workers=asked, cache=cache, seed=3, max_epochs=EPOCHS)
    recorder, output = Recorder(throughput, **changes), io.StringIO()
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[WorkerAdapter(throughput, Console(file=output, width=500))],
    )
    trainer.fit(recorder, datamodule=data)
    assert trainer.reload_dataloaders_every_n_epochs == 0
    return SimpleNamespace(recorder=recorder, lines=output.getvalue().splitlines(), data=data)


def test_workers__are_added_while_training_waits_and_the_images_are_the_same(data_yaml: Path) -> None:
    steady = run(data_yaml, FakeThroughput(0.0))
    assert steady.recorder.workers == [1] * EPOCHS
    (plan_line,) = steady.lines
    assert plan_line == steady.data.loading.describe()

    waiting = run(data_yaml, FakeThroughput(0.4))
    assert waiting.recorder.workers == [1, 2, 3, 3]  # three cores
    assert waiting.recorder.processes == waiting.recorder.workers  # those of the old loader are gone
    assert [len(epoch) for epoch in waiting.recorder.seen] == [NUM_IMAGES] * EPOCHS
    assert waiting.recorder.seen == steady.recorder.seen
    assert len(set(map(tuple, waiting.recorder.seen))) == EPOCHS
    assert waiting.lines[1:] == [
        "loader: 2 workers instead of 1: training waited 40% of the time",
        "loader: 3 workers instead of 2: training waited 40% of the time",
    ]


def test_loader_in_use__is_what_is_at_work_and_foresees_the_next_epoch(
    data_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.loop.datamodule.available_cores", lambda: 3)
    auto = run(data_yaml, FakeThroughput(0.4)).recorder
    assert [loader.workers for loader in auto.in_use] == auto.workers == [2, 3, 3, 3]
    assert [loader.next_workers for loader in auto.in_use] == [3, 3, 3, 3]  # the second one had three already
    mine = run(data_yaml, FakeThroughput(0.4), asked=1).recorder
    assert {(loader.workers, loader.next_workers, loader.most_workers) for loader in mine.in_use} == {(1, 1, 2)}


def test_loader_in_use__knows_the_cache(data_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = run(data_yaml, FakeThroughput(0.0), asked=0).recorder.in_use
    assert {(one.cache, one.is_filling_cache, one.cache_that_fits) for one in none} == {("none", False, "ram")}
    ram = run(data_yaml, FakeThroughput(0.0), asked=0, cache="auto").recorder.in_use
    assert [(one.cache, one.is_filling_cache, one.cache_that_fits) for one in ram] == [
        ("ram", epoch == 0, "") for epoch in range(EPOCHS)
    ]
    monkeypatch.setattr("data.loading.cache.SlotCache.is_closed", True)
    dropped = run(data_yaml, FakeThroughput(0.0), asked=0, cache="ram").recorder.in_use
    assert {(one.cache, one.is_cache_given_up, one.is_filling_cache) for one in dropped} == {("none", True, False)}


def test_workers__of_the_user_stay(data_yaml: Path) -> None:
    assert run(data_yaml, FakeThroughput(0.9), asked=1).recorder.workers == [1] * EPOCHS


def test_workers__are_judged_by_steps_of_their_own(data_yaml: Path) -> None:
    """An epoch is too short for a verdict; after two a worker is added; then the next two count anew."""
    short = run(data_yaml, FakeThroughput(0.4), steps_per_epoch=WINDOW_STEPS // 2 + 5)
    assert short.recorder.workers == [1, 1, 2, 2]


def test_workers__are_halved_when_ram_is_short(data_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.loop.datamodule.available_cores", lambda: 4)
    monkeypatch.setattr(workers, "ram_available_bytes", lambda: 0)
    short = run(data_yaml, FakeThroughput(0.4))
    assert short.recorder.workers == [3, 1, 1, 1]
    assert short.lines[1:] == ["loader: 1 workers instead of 3: RAM is short"]


def test_fit__adapts_and_trains_on(data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, with a wait that is pretended: validation, checkpoints and the lines on the screen."""
    monkeypatch.setattr(WorkerAdapter, "_stall_share", lambda self: 0.5)
    command = fit([
        "--config=configs/quickstart.yaml",
        f"--data.root={data_yaml}",
        f"--run.folder={tmp_path / 'run'}",
        "--data.image_size=64",
        "--data.batch_size=4",
        "--data.micro_batch_size=4",
        "--data.workers=auto",
        "--trainer.max_epochs=3",
    ])  # fmt: skip
    assert command.datamodule.loading.workers == 3
    assert command.trainer.current_epoch == 3 and command.model.step.num_steps_taken == 9
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
