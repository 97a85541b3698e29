"""The callback: what it leaves in a run folder, what it tells the loggers, and that it never loses a run."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index
from engine.loop.reporter import RunReporter
from engine.machine.diagnosis import Finding
from engine.report import curves
from engine.run.logs import EventFiles
from tests.helpers.report import write_history
from tests.helpers.results import make_metrics, make_pictures
from tests.helpers.training import make_window

NAMES = ["ic", "전해 커패시터", "led", "diode", "resistor"]
NUM_IMAGES = 20
EXPECTED = {
    "results.png", "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png",
    "confusion_matrix_normalized.png", "labels.png", "train_batch0.jpg", "val_batch0_labels.jpg",
    "val_batch0_pred.jpg", "val_batch1_labels.jpg", "val_batch1_pred.jpg", "worst_mistakes.jpg", "report.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> object:
    config = SyntheticConfig(num_train=4, num_val=2, image_size=96)
    return build_index(read_dataset_yaml(generate_pcb_dataset(tmp_path_factory.mktemp("d") / "b", config)), "train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    write_history(tmp_path / "run" / "metrics.csv", num_epochs=4)
    return tmp_path / "run"


def make_trainer(index: object, **changes: object) -> SimpleNamespace:
    source = SimpleNamespace(index=index)
    values = {
        "is_global_zero": True, "current_epoch": 0, "max_epochs": 4, "global_step": 8, "loggers": [],
        "sanity_checking": False, "datamodule": SimpleNamespace(train_dataset=SimpleNamespace(source=source)),
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def make_module(skill: float = 0.8) -> SimpleNamespace:
    metrics = make_metrics([*NAMES, "void"], NUM_IMAGES, skill)
    return SimpleNamespace(
        class_names=[*NAMES, "void"],
        config=SimpleNamespace(network="yolo11n"),
        image_size=96,
        evaluation=SimpleNamespace(metrics=metrics),
        results=metrics.compute(),
    )


def validate(reporter: RunReporter, trainer: SimpleNamespace, module: SimpleNamespace, paths: list[str]) -> None:
    reporter.on_validation_start(trainer, module)
    for start in range(0, len(paths), 8):
        reporter.on_validation_batch_end(trainer, module, None, SimpleNamespace(names=paths[start : start + 8]), 0)
    reporter.on_validation_end(trainer, module)


def run(folder: Path, trainer: SimpleNamespace, module: SimpleNamespace, **options: object) -> RunReporter:
    paths = make_pictures(folder.parent, NUM_IMAGES)
    reporter = RunReporter(folder, **options)
    try:
        reporter.on_train_start(trainer, module)
        reporter.on_train_batch_start(trainer, module, make_window([2, 0, 3]), 0)
        validate(reporter, trainer, module, paths)
        reporter.on_train_end(trainer, module)
    finally:
        reporter.teardown(trainer, module, "fit")
    return reporter


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_reporter__leaves_what_users_of_this_field_expect(folder: Path, index: object) -> None:
    events = EventFiles(folder.parent / "events")
    run(folder, make_trainer(index, loggers=[events]), make_module())
    events.finalize("success")
    assert files(folder) == EXPECTED | {"metrics.csv"}
    tags = EventAccumulator(events.log_dir).Reload().Tags()["images"]
    assert set(tags) == {f"pictures/{Path(name).stem}" for name in EXPECTED - {"report.html"}}
    assert all((folder / name).stat().st_size > 2_000 for name in EXPECTED)


def test_reporter__draws_only_in_the_first_process(folder: Path, index: object) -> None:
    run(folder, make_trainer(index, is_global_zero=False), make_module())
    assert files(folder) == {"metrics.csv"}


def test_reporter__survives_a_picture_that_cannot_be_drawn(
    folder: Path, index: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(curves, "_draw_pr", fail)
    with caplog.at_level(logging.WARNING, logger="engine.loop.reporter"):
        run(folder, make_trainer(index), make_module())
    (message,) = caplog.messages
    assert "PR_curve.png cannot be made (OSError: No space left on device): training is not affected" in message
    assert EXPECTED - files(folder) == {"PR_curve.png"}
    assert "No space left on device" in (folder / "report.html").read_text()


def test_reporter__shows_the_best_epoch(folder: Path, index: object) -> None:
    reporter, trainer = RunReporter(folder), make_trainer(index)
    paths = make_pictures(folder.parent, NUM_IMAGES)
    modules = [make_module(skill) for skill in (0.3, 0.9, 0.6)]
    for epoch, module in enumerate(modules):
        trainer.current_epoch = epoch
        validate(reporter, trainer, module, paths)
    reporter.on_train_end(trainer, modules[-1])
    reporter.teardown(trainer, modules[-1], "fit")
    text = (folder / "report.html").read_text()
    assert "Epoch 2, the best one by mAP50-95" in text
    assert f"{modules[1].results.map50_95:.3f}" in text
    found = np.concatenate([record.detections for record in reporter._best_records])
    assert len(found) == sum(rows.numel() // 6 for rows in modules[1].evaluation.metrics.detections)


def test_reporter__says_which_epoch_best_ckpt_holds(folder: Path, index: object) -> None:
    """It may be another than the best one that this process has seen: the run was resumed, or the disk was full."""
    (folder / "checkpoints").mkdir()
    content = {"epoch": 2, "global_step": 6, "score": 0.9, "state_dict": {}, "yolofit": {}}
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    run(folder, make_trainer(index, current_epoch=4), make_module(0.3))
    text = (folder / "report.html").read_text()
    assert "Epoch 5, the best one by mAP50-95 since the run was resumed" in text
    assert "best.ckpt holds epoch 3, mAP50-95 0.9000" in text


def test_reporter__reports_a_run_that_ended_in_its_first_epoch(tmp_path: Path, index: object) -> None:
    """Nothing was validated, and there is no row in metrics.csv."""
    reporter, trainer, module = RunReporter(tmp_path), make_trainer(index), make_module()
    reporter.on_train_start(trainer, module)
    reporter.on_train_batch_start(trainer, module, make_window([2, 0, 3]), 0)
    reporter.on_exception(trainer, module, KeyboardInterrupt())
    reporter.teardown(trainer, module, "fit")
    assert "ended early: KeyboardInterrupt" in (tmp_path / "report.html").read_text()


def test_reporter__leaves_no_report_of_a_run_that_never_began(tmp_path: Path, index: object) -> None:
    reporter, trainer, module = RunReporter(tmp_path), make_trainer(index), make_module()
    reporter.on_exception(trainer, module, KeyboardInterrupt())
    reporter.teardown(trainer, module, "fit")
    assert files(tmp_path) == set()


def test_reporter__reports_a_run_that_ended_early_with_its_warnings_and_advice(folder: Path, index: object) -> None:
    findings = [Finding("CPU", "8 workers", "lower it", "note"), Finding("pace", "the device sets it")]
    reporter, trainer = RunReporter(folder, findings), make_trainer(index)
    module = make_module()
    reporter.on_train_start(trainer, module)
    validate(reporter, trainer, module, make_pictures(folder.parent, NUM_IMAGES))
    logging.getLogger("data.indexing.index").warning("train: 3 images without a label file")
    reporter.on_exception(trainer, module, KeyboardInterrupt())
    reporter.on_train_end(trainer, module)
    reporter.teardown(trainer, module, "fit")
    text = (folder / "report.html").read_text()
    for sentence in ("ended early: KeyboardInterrupt", "3 images without a label file", "CPU: 8 workers: lower it"):
        assert sentence in text
    assert "the device sets it" not in text  # what is as it should be is no warning
    logging.getLogger("data.indexing.index").warning("not of this run")
    assert len(reporter._warnings.messages) == 2


def test_warnings__are_still_shown_when_nobody_else_listens(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    never_begun, reporter = RunReporter(folder), RunReporter(folder)
    logging.getLogger("engine.loop.monitor").warning("VRAM is spilling")
    reporter.teardown(None, None, "fit")
    assert capsys.readouterr().err == "VRAM is spilling\n"
    assert never_begun._warnings.messages == []
