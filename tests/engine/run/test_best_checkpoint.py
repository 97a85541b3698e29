"""What is promised of best.ckpt, last.ckpt and run.patience: a real Trainer, a module of one weight, given scores."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from engine.errors import ConfigError
from engine.run.best_checkpoint import read_best
from engine.run.checkpoint_io import SafeCheckpointIO
from engine.run.folder import RunConfig, default_callbacks, prepare_run_folder
from engine.run.last_checkpoint import Interrupted
from engine.training.ranks import Ranks

STEPS = 4
"""Of an epoch."""


class OneWeight(L.LightningModule):
    """Each step adds one to its weight; each validation has the score that the list has for its epoch."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores = scores
        self.step = SimpleNamespace(ranks=Ranks())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.optimizers().step()
        with torch.no_grad():
            self.weight += 1

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("val/map50_95", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def result(self) -> dict[str, Any]:
        return {"state_dict": {"weight": self.weight.detach()}, "yolofit": {}}


def train(
    folder: Path, scores: list[float], ckpt: Path | None = None, patience: int = 0, more: tuple = (), **trainer: Any
) -> L.Trainer:
    """Train in a folder that `engine.fit` would have made, with the callbacks that it would have had."""
    behind = 0 if ckpt is None else torch.load(ckpt, weights_only=True)["global_step"]
    folder = prepare_run_folder(RunConfig(folder), ckpt, behind)
    callbacks = [*more, *default_callbacks(folder, RunConfig(patience=patience, checkpoint_minutes=0))]
    fit = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        num_sanity_val_steps=0, plugins=[SafeCheckpointIO()], **{"max_epochs": len(scores)} | trainer,
    )  # fmt: skip
    data = DataLoader(torch.zeros(STEPS, 1))
    fit.fit(OneWeight(scores), data, data, ckpt_path=ckpt, weights_only=True)
    return fit


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the disk is full when a checkpoint is all but written."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def read(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


class TestLast:
    @pytest.mark.parametrize(
        "how",
        [
            {"check_val_every_n_epoch": 10},
            {"check_val_every_n_epoch": 2},
            {"limit_val_batches": 0},
            {"val_check_interval": 2},
            {"val_check_interval": 3, "check_val_every_n_epoch": None},
            {"max_steps": 2 * STEPS},
            {"max_steps": 2 * STEPS - 1},
            {"limit_train_batches": 2},
        ],
        ids=str,
    )
    def test_last__holds_the_last_step_however_often_there_is_validation(self, run: Path, how: dict) -> None:
        trainer = train(run, [0.1, 0.2, 0.3], **how)
        saved = read(run, "last")
        assert saved["global_step"] == trainer.global_step > 0
        assert saved["state_dict"]["weight"] == trainer.global_step

    def test_last__is_written_after_every_epoch(self, run: Path) -> None:
        """The one before is kept, so both of the last two epochs are there."""
        train(run, [0.1, 0.2, 0.3], check_val_every_n_epoch=10)
        assert [read(run, name)["global_step"] for name in ("last.previous", "last")] == [2 * STEPS, 3 * STEPS]

    @pytest.mark.parametrize("num_steps", [STEPS, STEPS + 1])
    def test_run__that_max_steps_has_ended_goes_on_where_it_was(self, run: Path, num_steps: int) -> None:
        """At an epoch's end, and in the middle of one."""
        train(run, [0.1] * 3, max_steps=num_steps)
        trainer = train(run, [0.1] * 3, ckpt=last(run), max_steps=2 * STEPS + 1)
        assert trainer.global_step == 2 * STEPS + 1
        assert trainer.fit_loop.epoch_progress.current.processed == 3  # of which the last was not finished

    def test_run__that_max_time_has_ended_goes_on_where_it_was(self, run: Path) -> None:
        class TimeIsUp(L.Callback):
            """As Lightning's Timer says so, in the midst of the second epoch."""

            def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
                trainer.should_stop = trainer.should_stop or trainer.global_step == STEPS + 2

        assert train(run, [0.1] * 3, more=(TimeIsUp(),)).global_step == read(run, "last")["global_step"] == STEPS + 2
        assert train(run, [0.1] * 3, ckpt=last(run)).global_step == 3 * STEPS  # no window of it was left out

    @pytest.mark.parametrize("how", [{"val_check_interval": 2}, {}], ids=str)
    def test_run__that_is_stopped_in_a_validation_begins_with_it(self, run: Path, how: dict) -> None:
        """Within an epoch, and at its end."""

        class Stopped(L.Callback):
            def __init__(self, in_validation: int) -> None:
                self.in_validation, self.steps = in_validation, []

            def on_validation_start(self, trainer: L.Trainer, *args: object) -> None:
                self.steps.append(trainer.global_step)
                if len(self.steps) == self.in_validation:
                    signal.raise_signal(signal.SIGTERM)

        scores, undisturbed, first, second = [0.1, 0.5, 0.3], Stopped(0), Stopped(2), Stopped(0)
        train(run.with_name("undisturbed"), scores, more=(undisturbed,), **how)
        with pytest.raises(Interrupted):
            train(run, scores, more=(first,), **how)
        assert read(run, "last")["global_step"] == first.steps[-1]
        train(run, scores, more=(second,), ckpt=last(run), **how)
        assert first.steps[:-1] + second.steps == undisturbed.steps
        assert read(run, "best")["global_step"] == read(run.with_name("undisturbed"), "best")["global_step"]


class TestBest:
    def test_best__is_the_epoch_with_the_highest_score(self, run: Path) -> None:
        train(run, [0.1, 0.5, 0.3])
        best = read(run, "best")
        assert (best["epoch"], best["global_step"], best["state_dict"]["weight"]) == (1, 2 * STEPS, 2 * STEPS)

    def test_best__holds_weights_and_not_what_training_needs(self, run: Path) -> None:
        train(run, [0.1])
        assert read(run, "best").keys() == {"epoch", "global_step", "score", "state_dict", "yolofit"}
        assert "optimizer_states" in read(run, "last")

    def test_best__is_of_the_weights_that_were_validated(self, run: Path) -> None:
        """Also where training resumes in the same epoch."""
        train(run, [0.3], val_check_interval=2, limit_train_batches=3)
        assert read(run, "best")["state_dict"]["weight"] == 2

    def test_best__is_the_newest_while_nothing_is_found_or_measured(self, run: Path) -> None:
        train(run, [float("nan")] * 3, patience=1)
        assert read(run, "best")["epoch"] == 2
        train(run.with_name("zeros"), [0.0, 0.0, 0.1, 0.0], patience=2)
        assert read(run.with_name("zeros"), "best")["epoch"] == 2

    def test_best__that_the_disk_refused_once_is_made_up_for(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the very weights that it should have held, although the epoch after is worse."""

        class FullInSecondEpoch(L.Callback):
            def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
                refuse(monkeypatch) if trainer.current_epoch == 1 else monkeypatch.undo()

        trainer = train(run, [0.1, 0.5, 0.3], more=(FullInSecondEpoch(),))
        assert (read(run, "best")["epoch"], read(run, "best")["state_dict"]["weight"]) == (1, 2 * STEPS)
        assert not trainer.strategy.checkpoint_io.failures

    def test_best__that_was_never_written_is_a_failure_and_the_file_says_what_it_holds(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(run, [0.2])
        with monkeypatch.context() as patch:
            refuse(patch)
            trainer = train(run, [0.2, 0.9, 0.3], ckpt=last(run))
        assert "best.ckpt: cannot be written" in " ".join(trainer.strategy.checkpoint_io.failures.values())
        assert str(read_best(run / "checkpoints" / "best.ckpt")) == "epoch 1, mAP50-95 0.2000"
        train(run, [0.2, 0.3, 0.1], ckpt=last(run))  # beats what is in the file
        assert read(run, "best")["epoch"] == 1

    @pytest.mark.parametrize("place", ["stays", "moved", "elsewhere", "only last.ckpt"])
    def test_best__of_a_run_that_goes_on_is_not_lost_to_a_worse_epoch(self, run: Path, place: str) -> None:
        train(run, [0.1, 0.9])
        folder, checkpoint = run, last(run)
        if place == "moved":
            folder = run.rename(run.with_name("moved"))
            checkpoint = last(folder)
        elif place == "elsewhere":
            folder = run.with_name("elsewhere")
        elif place == "only last.ckpt":
            (run / "checkpoints" / "best.ckpt").unlink()  # its weights are nowhere
        train(folder, [0.1, 0.9, 0.5, 0.4], ckpt=checkpoint)
        assert read(folder, "best")["epoch"] == (2 if place == "only last.ckpt" else 1)

    def test_best__of_a_later_epoch_is_set_aside_where_a_run_goes_on_from_an_older_checkpoint(self, run: Path) -> None:
        train(run, [0.1, 0.3, 0.9])
        older = run / "checkpoints" / "last.previous.ckpt"  # of the second epoch
        train(run, [0.1, 0.3, 0.2, 0.2], ckpt=older)
        assert read(run, "best")["epoch"] == 1
        assert read(run, "best.later")["epoch"] == 2

    def test_best__that_is_damaged_gives_way_to_the_one_before(self, run: Path) -> None:
        train(run, [0.1, 0.3])
        best = run / "checkpoints" / "best.ckpt"
        best.write_bytes(best.read_bytes()[:100])
        train(run, [0.1, 0.3, 0.05], ckpt=last(run))
        assert read(run, "best")["epoch"] == 0

    def test_read_best__of_a_file_by_lightning_knows_its_score(self, tmp_path: Path) -> None:
        """As they were written before the score was in them."""
        state = {"best_model_score": torch.tensor(0.625), "dirpath": "/gone"}
        key = "ModelCheckpoint{'monitor': 'val/map50_95', 'mode': 'max', 'every_n_epochs': 1}"
        content = {"epoch": 3, "global_step": 8, "callbacks": {key: state, "Other": {}}, "yolofit": {}}
        torch.save(content, tmp_path / "best.ckpt")
        assert str(read_best(tmp_path / "best.ckpt")) == "epoch 4, mAP50-95 0.6250"

    @pytest.mark.parametrize(("every", "limit", "is_said"), [(3, 1.0, True), (2, 1.0, False), (1, 0, True)])
    def test_of_a_run_that_never_validates_is_missed_at_its_start(
        self, every: int, limit: float, is_said: bool, run: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        train(run, [0.1, 0.2], check_val_every_n_epoch=every, limit_val_batches=limit)
        assert ("is not written, because no epoch" in caplog.text) == is_said
        assert (run / "checkpoints" / "best.ckpt").exists() != is_said


class TestPatience:
    def epochs(self, run: Path, scores: list[float], patience: int, **more: Any) -> int:
        return train(run, scores, patience=patience, **more).current_epoch

    def test_patience__counts_epochs_without_a_better_one(self, run: Path) -> None:
        assert self.epochs(run, [0.1, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4], patience=3) == 5

    def test_patience__counts_epochs_also_where_few_are_validated(self, run: Path) -> None:
        """Epochs 2, 4 and 6 are; the best one is the second."""
        scores = [0.0, 0.5, 0.0, 0.4, 0.0, 0.4, 0.0, 0.4]
        assert self.epochs(run, scores, patience=3, check_val_every_n_epoch=2) == 6

    def test_patience__does_not_end_a_run_before_it_could_get_better(self, run: Path) -> None:
        assert self.epochs(run, [0.1, 0.2, 0.3, 0.4], patience=1) == 4

    def test_patience__goes_on_counting_where_the_run_goes_on(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        scores = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
        train(run, scores[:3], patience=4)
        assert self.epochs(run, scores, patience=4, ckpt=last(run)) == 5
        assert "no better mAP50-95 for 4 epochs" in capsys.readouterr().out
        assert self.epochs(run, scores, patience=4, ckpt=last(run)) == 5  # it is over already
        assert self.epochs(run, scores, patience=5, ckpt=last(run)) == 6

    def test_patience__of_zero_has_no_end(self, run: Path) -> None:
        assert self.epochs(run, [0.5] + [0.1] * 5, patience=0) == 6


class TestFolder:
    def test_folder__numbered_beside_the_configured_one_is_that_of_its_own_checkpoints(self, tmp_path: Path) -> None:
        """The same command, which names ``run``, with --ckpt_path resumes in ``run-2``."""
        (tmp_path / "run-2" / "checkpoints").mkdir(parents=True)
        config = RunConfig(tmp_path / "run")
        assert prepare_run_folder(config, tmp_path / "run-2" / "checkpoints" / "last.ckpt").name == "run-2"
        assert prepare_run_folder(config, tmp_path / "runs-2" / "checkpoints" / "last.ckpt").name == "run"

    def test_folder__elsewhere_gets_the_metrics_of_the_run_that_goes_on(self, run: Path) -> None:
        train(run, [0.1])
        (run / "metrics.csv").write_text("epoch,step\n0,3\n")
        folder = prepare_run_folder(RunConfig(run.with_name("other")), last(run), STEPS)
        assert (folder / "metrics.csv").read_text() == "epoch,step\n0,3\n"

    def test_folder__that_refuses_the_best_epoch_is_one_line(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        train(run, [0.1])

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(ConfigError, match=r"^run\.folder: .*other: cannot be written to \(No space left"):
            prepare_run_folder(RunConfig(run.with_name("other")), last(run), STEPS)
