"""What the data module adds to what tests of `data` and whole runs hold."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import lightning as L
import pytest
import torch

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.loop.datamodule import DetectionData
from engine.machine.diagnosis import LoaderInUse

NUM_EPOCHS = 3


@pytest.mark.parametrize("before", ["pools of 64 images", "the whole data set", None])
def test_load_state_dict__says_that_mosaic_partners_change(before: str | None, capsys: pytest.CaptureFixture) -> None:
    data = mock.Mock(loading=mock.Mock(partners="the whole data set"))
    state = DetectionData.state_dict(data) | {"mosaic_partners": before} if before else {}
    DetectionData.load_state_dict(data, state)
    printed = capsys.readouterr().out
    assert ("note: mosaic partners come from the whole data set" in printed) is (before == "pools of 64 images")


class Recorder(L.LightningModule):
    """Trains nothing; keeps what the data module says of its loader in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.in_use: list[LoaderInUse] = []

    def on_train_epoch_start(self) -> None:
        self.in_use.append(self.trainer.datamodule.loader_in_use())

    def training_step(self, batch: object, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "boards"
    return generate_pcb_dataset(folder, SyntheticConfig(num_train=10, num_val=2, image_size=96))


def loaders_in_use(data_yaml: Path, workers: int | str, cache: str) -> list[LoaderInUse]:
    """The loader in each of some epochs of three windows."""
    data = DetectionData(str(data_yaml), 4, 4, 64, workers=workers, cache=cache, seed=3, max_epochs=NUM_EPOCHS)
    recorder = Recorder()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=NUM_EPOCHS, accelerator="cpu", use_distributed_sampler=False, **quiet)
    trainer.fit(recorder, datamodule=data)
    return recorder.in_use


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:You passed in a `val_dataloader`")
class TestLoaderInUse:
    @pytest.mark.parametrize(("workers", "num_workers"), [("auto", 2), (1, 1)])
    def test_workers__are_those_at_work(
        self, workers: int | str, num_workers: int, data_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        monkeypatch.setattr("engine.loop.datamodule.available_cores", lambda: 3)
        in_use = loaders_in_use(data_yaml, workers, "none")
        assert [(one.workers, one.cores, one.most_workers) for one in in_use] == [(num_workers, 3, 2)] * NUM_EPOCHS
        assert f"loader: {num_workers} workers, " in capsys.readouterr().out

    def test_cache__is_the_one_in_use(self, data_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        none = loaders_in_use(data_yaml, 0, "none")
        assert {(one.cache, one.is_filling_cache, one.cache_that_fits) for one in none} == {("none", False, "ram")}
        ram = loaders_in_use(data_yaml, 0, "auto")
        assert [(one.cache, one.is_filling_cache, one.cache_that_fits) for one in ram] == [
            ("ram", epoch == 0, "") for epoch in range(NUM_EPOCHS)
        ]
        monkeypatch.setattr("data.loading.cache.SlotCache.is_closed", True)
        dropped = loaders_in_use(data_yaml, 0, "ram")
        assert {(one.cache, one.is_cache_given_up, one.is_filling_cache) for one in dropped} == {("none", True, False)}
