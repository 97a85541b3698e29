"""What validation makes of the set it is given: no object at all, a crowd, objects in one batch only."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import torch

from engine.command_line.cli import CommandLine
from engine.fit import main as fit
from engine.validate import main as validate
from tests.helpers.runs import make_boards, quickstart_arguments


@pytest.fixture
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_boards(tmp_path_factory, num_train=2, num_val=2)


def label_files(data_yaml: Path) -> list[Path]:
    return sorted((data_yaml.parent / "labels" / "val").iterdir())


def run(data_yaml: Path, folder: Path, *more: str) -> CommandLine:
    return fit(quickstart_arguments(data_yaml, folder, 64, 2, 1, "--data.workers=0", *more))


def best_epoch(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]


@pytest.mark.slow
def test_fit__without_validation_objects_keeps_the_newest_epoch_and_trains_on(
    data_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {file: file.read_text() for file in label_files(data_yaml)}
    for file in labels:
        file.write_text("")
    folder = tmp_path / "run"
    run(data_yaml, folder, "--trainer.max_epochs=3", "--run.patience=1")
    assert "no object in any of 2 images: there is nothing to measure" in caplog.text
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" *\d/3 ", line)]
    assert [row[0] for row in rows] == ["1/3", "2/3", "3/3"]  # not ended by patience
    assert all(row[4:6] == ["-", "-"] for row in rows)
    assert best_epoch(folder) == 2
    with (folder / "metrics.csv").open() as file:
        assert all(math.isnan(float(row["val/map50_95"])) for row in csv.DictReader(file))

    for file, text in labels.items():  # labeled after all: what is measured counts more than what was not
        file.write_text(text)
    run(data_yaml, folder, "--trainer.max_epochs=4", "--run.patience=1", f"--ckpt_path={folder}/checkpoints/last.ckpt")
    assert best_epoch(folder) == 3


@pytest.mark.slow
def test_fit__keeps_enough_detections_for_a_crowd(
    data_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crowd = [f"0 {x / 25 + 0.02} {y / 20 + 0.025} 0.03 0.04" for x in range(25) for y in range(20)]
    label_files(data_yaml)[1].write_text("\n".join(crowd))
    one = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    cli = run(data_yaml, tmp_path / "auto", *one, "--model.nms.confidence=0", "--model.nms.iou=1")
    assert "1000 detections of an image count instead of 300: one has 500 objects" in caplog.text
    found = cli.model.evaluation.metrics.counts
    assert max(int(image[0]) for image in found) > 300
    caplog.clear()
    run(data_yaml, tmp_path / "given", *one, "--model.nms.max_detections=40")
    assert "model.nms.max_detections: 40: an image has 500 objects, which cannot all be found" in caplog.text


@pytest.mark.slow
def test_validate__without_objects_says_so_and_ends_well(
    data_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data_yaml, tmp_path / "run", "--trainer.max_epochs=1")
    for file in label_files(data_yaml):
        file.write_text("")
    capsys.readouterr()
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    validate([f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--data.workers=0"])
    output = capsys.readouterr().out
    assert "nothing to measure" in caplog.text
    assert "nan" not in output and re.search(r"^all +0( +-){5}$", output, re.MULTILINE)
