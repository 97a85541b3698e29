"""A run that was stopped anywhere resumes to the very same weights."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import DataError
from data.loading.dataset import TrainDataset
from engine.fit import main as fit
from engine.report.memory_log import read_memory_log
from engine.run.last_checkpoint import Interrupted, LastCheckpoint
from engine.validation.evaluation import Evaluation
from tests.helpers.runs import assert_same, final_state, make_boards, quickstart_arguments, rows_of

EPOCHS = 3
WINDOWS = 3


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=16, num_val=4)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """16 images in windows of 6 by 4, read by a worker."""
    return quickstart_arguments(
        data_yaml, folder, 64, 6, 4, "--data.workers=1", f"--trainer.max_epochs={EPOCHS}", *more
    )


class RaiseSignal(L.Callback):
    """Sends this process a signal in the middle of one window's hooks, or of validation."""

    def __init__(self, number: int, at_step: int | None) -> None:
        self.number, self.at_step = number, at_step

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step + 1 == self.at_step:
            signal.raise_signal(self.number)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if self.at_step is None and trainer.current_epoch == 0:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def undisturbed(data_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    fit(arguments(data_yaml, folder))
    return folder, final_state(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "at_step"), [(signal.SIGINT, 1), (signal.SIGTERM, 5), (signal.SIGTERM, 3), (signal.SIGINT, None)]
)
def test_signal__stops_with_a_checkpoint_from_which_the_run_goes_on_exactly(
    number: int, at_step: int | None, data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    """In the first window, in a middle one, in the last of an epoch, and in validation."""
    from engine.command_line import cli

    callbacks = cli.default_callbacks
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cli, "default_callbacks", lambda *args: [*callbacks(*args), RaiseSignal(number, at_step)])
        with pytest.raises(Interrupted, match=rf"stopped by {signal.Signals(number).name}: .*last\.ckpt"):
            fit(arguments(data_yaml, folder))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == (at_step or WINDOWS)
    fit(arguments(data_yaml, folder, f"--ckpt_path={last}"))
    assert_same(final_state(folder), undisturbed[1])
    assert rows_of(folder) == rows_of(undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, EPOCHS - 1])
def test_resume__after_validation_has_failed_begins_with_that_validation(
    epoch: int, data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    """No window is taken twice, and none of the metrics is left out; in the first epoch, and in the last."""
    folder = tmp_path / "run"
    update = Evaluation.update

    def fail(self: Evaluation, *args: object) -> None:
        if len(rows_of(folder) if (folder / "metrics.csv").exists() else []) == epoch:
            raise RuntimeError("in the midst of validation")
        update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "update", fail)
        with pytest.raises(RuntimeError, match="in the midst of validation"):
            fit(arguments(data_yaml, folder))
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == (epoch + 1) * WINDOWS
    fit(arguments(data_yaml, folder, f"--ckpt_path={last}"))
    assert_same(final_state(folder), undisturbed[1])
    assert rows_of(folder) == rows_of(undisturbed[0])


@pytest.mark.slow
def test_resume__extends_a_finished_run(data_yaml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(arguments(data_yaml, folder, "--trainer.max_epochs=1"))
    first = rows_of(folder)
    cli = fit(arguments(data_yaml, folder, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"))
    assert [row["epoch"] for row in rows_of(folder)] == ["0", "1", "2"]
    assert rows_of(folder)[0] == first[0]
    assert cli.model.step.num_steps_taken == EPOCHS * WINDOWS


@pytest.mark.slow
def test_resume__within_an_epoch_that_max_steps_has_ended_logs_it_once(
    data_yaml: Path, tmp_path: Path, undisturbed
) -> None:
    folder = tmp_path / "run"
    fit(arguments(data_yaml, folder, f"--trainer.max_steps={WINDOWS + 1}"))
    assert [row["epoch"] for row in rows_of(folder)] == ["0", "1"]
    fit(arguments(data_yaml, folder, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"))
    assert_same(final_state(folder), undisturbed[1])
    assert rows_of(folder) == rows_of(undisturbed[0])


@pytest.mark.parametrize(("name", "shown"), [("run", "{}/run/last.ckpt"), ("my run", "'{}/my run/last.ckpt'")])
def test_stop__names_a_checkpoint_only_if_it_is_there(name: str, shown: str, tmp_path: Path) -> None:
    """The disk may have refused it."""
    path = tmp_path / name / "last.ckpt"
    with pytest.raises(Interrupted, match=r"no checkpoint was written yet: start again$"):
        LastCheckpoint(path, 0)._stop()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(Interrupted) as caught:
        LastCheckpoint(path, 0)._stop()
    assert str(caught.value).endswith(f": resume with the same command and --ckpt_path {shown.format(tmp_path)}")


@pytest.mark.slow
def test_resume__of_a_run_at_its_end_says_so(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    fit(arguments(data_yaml, folder, "--trainer.max_epochs=1"))
    last = folder / "checkpoints" / "last.ckpt"
    assert "nothing to train" not in capsys.readouterr().out
    fit(arguments(data_yaml, folder, "--trainer.max_epochs=1", f"--ckpt_path={last}"))
    said = f"nothing to train: {last} is the end of its run: resume with trainer.max_epochs above 1"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_resume__from_an_older_checkpoint_takes_back_what_was_logged_after_it(
    data_yaml: Path, tmp_path: Path, undisturbed
) -> None:
    """Once the run has resumed, its logs are those of a run that was never interrupted."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    older = folder / "checkpoints" / "last.previous.ckpt"  # of the second epoch
    assert torch.load(older, weights_only=True)["global_step"] == 2 * WINDOWS
    fit(arguments(data_yaml, folder, f"--ckpt_path={older}"))
    assert_same(final_state(folder), undisturbed[1])
    assert rows_of(folder) == rows_of(undisturbed[0])
    columns = read_memory_log(folder / "memory.csv")
    assert columns["step"] == sorted(columns["step"])
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/map50")] == [WINDOWS * epoch - 1 for epoch in (1, 2, 3)]


@pytest.mark.slow
def test_resume__after_the_loader_has_failed_loses_no_window(
    data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed
) -> None:
    folder = tmp_path / "run"
    getitems = TrainDataset.__getitems__

    def fail(dataset: TrainDataset, keys: list, *empty: object) -> object:
        if keys[0].epoch == 1 and len(keys) < 6:  # the last window of the second epoch
            raise DataError("the disk is gone")
        return getitems(dataset, keys, *empty)

    with monkeypatch.context() as patch:
        patch.setattr(TrainDataset, "__getitems__", fail)
        with pytest.raises(DataError, match="the disk is gone"):
            fit(arguments(data_yaml, folder))
    last = folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2 * WINDOWS - 1
    fit(arguments(data_yaml, folder, f"--ckpt_path={last}"))
    assert_same(final_state(folder), undisturbed[1])
    assert rows_of(folder) == rows_of(undisturbed[0])
