"""Whole runs in several processes, as torchrun starts them, against one process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.run.checkpoint_io import verify_checkpoint
from tests.helpers.runs import (
    RunProcess,
    final_state,
    make_boards,
    quickstart_arguments,
    rows_of,
    start_ranks,
    start_run,
)
from tests.helpers.training import relative_error

EPOCHS = 2
WINDOWS = 3


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=16, num_val=7)


def arguments(data_yaml: Path, folder: Path, *more: str) -> list[str]:
    """Windows of 6, 6 and 4 images; SGD, because AdamW turns rounding of gradients near 0 into steps."""
    return quickstart_arguments(
        data_yaml,
        folder,
        64,
        6,
        2,
        "--data.workers=1",
        "--model.freeze_batch_norm=true",
        "--model.optimizer.name=sgd",
        "--model.optimizer.lr=0.01",
        f"--trainer.max_epochs={EPOCHS}",
        *more,
    )


@pytest.fixture(scope="module")
def single(data_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    run = start_run(arguments(data_yaml, folder / "run"), folder / "output.txt")
    assert run.wait() == 0, run.output.read_text()
    return folder / "run"


def parameters(folder: Path) -> torch.Tensor:
    state = final_state(folder)
    return torch.cat([v.flatten() for k, v in state.items() if k.startswith("network.") and v.is_floating_point()])


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_fit__several_processes_are_one(num_ranks: int, data_yaml: Path, single: Path, tmp_path: Path) -> None:
    """Six steps, an uneven last window in each epoch, and 7 validation images."""
    ranks = start_ranks(num_ranks, arguments(data_yaml, tmp_path / "run"), tmp_path)
    assert [rank.wait() for rank in ranks] == [0] * num_ranks, ranks[0].output.read_text()
    assert final_state(tmp_path / "run")["num_steps_taken"] == EPOCHS * WINDOWS
    assert relative_error(parameters(tmp_path / "run"), parameters(single)) <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run"]
    for ours, expected in zip(rows_of(tmp_path / "run"), rows_of(single), strict=True):
        assert ours.keys() == expected.keys()
        for name in expected:
            assert float(ours[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6, nan_ok=True), name


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images to train on, so that windows of 4 leave one over, and a single one to validate with."""
    return make_boards(tmp_path_factory, num_train=9, num_val=1)


@pytest.mark.slow
def test_fit__a_process_without_an_image_changes_nothing(few: Path, tmp_path: Path) -> None:
    """Neither in the last window nor in validation, where it would end the run or leave the others waiting."""
    more = ("--data.batch_size=4", "--data.micro_batch_size=1", "--trainer.max_epochs=1")
    alone = start_run(arguments(few, tmp_path / "alone", *more), tmp_path / "output.txt")
    assert alone.wait(120) == 0, alone.output.read_text()
    ranks = start_ranks(2, arguments(few, tmp_path / "run", *more), tmp_path)
    assert [rank.wait(120) for rank in ranks] == [0, 0], ranks[1].output.read_text()
    assert relative_error(parameters(tmp_path / "run"), parameters(tmp_path / "alone")) <= 1e-6
    for ours, expected in zip(rows_of(tmp_path / "run"), rows_of(tmp_path / "alone"), strict=True):
        for name in expected:
            assert float(ours[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6, nan_ok=True), name


@pytest.mark.slow
def test_fit__all_take_the_leanest_plan(few: Path, tmp_path: Path) -> None:
    """The second one's, which was made for a device with less room."""
    args = arguments(
        few, tmp_path / "run", "--trainer.max_epochs=1", "--data.batch_size=8", "--data.micro_batch_size=4"
    )
    differing = {1: ["--data.micro_batch_size=2", "--model.recompute=block"]}
    ranks = start_ranks(2, args, tmp_path, differing)
    assert [rank.wait(120) for rank in ranks] == [0, 0], ranks[1].output.read_text()
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    memory = checkpoint["yolofit"]["step"]["memory"]["current"]
    assert (memory["micro_batch_size"], memory["recompute"]) == (2, "block")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_fit__what_keeps_one_process_from_beginning_ends_all_with_one_line(
    failing: int, few: Path, tmp_path: Path
) -> None:
    args = arguments(few, tmp_path / "run")
    ranks = start_ranks(2, args, tmp_path, {failing: ["--model.optimizer.lr=-1"]})
    assert [rank.wait(60) for rank in ranks] == [2, 2]
    lines = [line for rank in ranks for line in rank.output.read_text().splitlines() if "error" in line]
    assert len(lines) == 1 and "model.optimizer.lr: -1.0: must be above 0" in lines[0], lines


@pytest.mark.slow
def test_fit__an_error_of_all_processes_is_printed_once(few: Path, tmp_path: Path) -> None:
    """Weights that run away, in training, and a wrong key, before."""
    away = ("--model.optimizer.lr=1e30", "--model.schedule.warmup_epochs=0", "--model.max_skipped_windows=2")
    for number, more in enumerate((away, ("--data.image_size=650",))):
        (tmp_path / str(number)).mkdir()
        ranks = start_ranks(2, arguments(few, tmp_path / f"run{number}", *more), tmp_path / str(number))
        assert [rank.wait(120) for rank in ranks] == [2, 2]
        lines = [line for rank in ranks for line in rank.output.read_text().splitlines() if "error:" in line]
        assert len(lines) == 1, lines
        assert ("windows in a row", "650: must be a multiple of 32")[number] in lines[0]


@pytest.mark.slow
def test_fit__a_process_that_dies_ends_the_others_within_a_minute(data_yaml: Path, tmp_path: Path) -> None:
    args = arguments(data_yaml, tmp_path / "run", "--trainer.max_epochs=50")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    ranks = start_ranks(2, args, tmp_path)
    wait_for(last, ranks[0])
    os.kill(ranks[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    status = ranks[0].wait(60)
    output = ranks[0].output.read_text()
    assert status == 2, output
    assert time.monotonic() - killed < 60
    assert "error: another process of this run has ended or does not answer" in output.splitlines()[-1]
    assert "--ckpt_path of its last.ckpt" in output.splitlines()[-1]

    verify_checkpoint(last, "--ckpt_path")
    epochs = torch.load(last, weights_only=True)["epoch"] + 2
    more = arguments(data_yaml, tmp_path / "run", f"--ckpt_path={last}", f"--trainer.max_epochs={epochs}")
    resumed = start_run(more, tmp_path / "resumed.txt")
    assert resumed.wait() == 0, resumed.output.read_text()
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == [str(epoch) for epoch in range(epochs)]


@pytest.mark.slow
def test_fit__a_signal_to_one_process_stops_all_with_a_checkpoint(data_yaml: Path, tmp_path: Path) -> None:
    args = arguments(data_yaml, tmp_path / "run", "--trainer.max_epochs=50")
    ranks = start_ranks(2, args, tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", ranks[0])
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [rank.wait(60) for rank in ranks] == [2, 2]
    assert "error: stopped by another process: resume with" in ranks[0].output.read_text()
    assert "error: stopped by SIGTERM: resume with" in ranks[1].output.read_text()


def wait_for(path: Path, run: RunProcess) -> None:
    while not path.exists():
        assert run.is_running, run.output.read_text()
        time.sleep(0.01)
