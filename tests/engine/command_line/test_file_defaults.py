"""A file of weights says what it was trained with: every command takes that, unless something else is given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.loading.batch import Batch
from engine.command_line.cli import CommandLine
from engine.export import main as export
from engine.plan import _configured_question as configured_question
from engine.run.checkpoint import network_description
from engine.validate import main as validate
from engine.validation.evaluation import Evaluation
from models.network import build_network

NAMES = ["resistor", "capacitor", "chip"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random yolo11n that says it was trained at 96 px; the defaults are a yolo11l at 640."""
    torch.manual_seed(0)
    state = {f"ema.network.{name}": tensor for name, tensor in build_network("yolo11n", 3).state_dict().items()}
    torch.save({"state_dict": state, "yolofit": network_description("yolo11n", NAMES, 96)}, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    """One training, three validation and two test images."""
    for split, count in (("train", 1), ("val", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for number in range(count):
            picture = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
            cv2.imwrite(str(tmp_path / split / f"{number}.png"), picture)
            (tmp_path / split / f"{number}.txt").write_text("0 0.5 0.5 0.3 0.3\n2 0.2 0.2 0.1 0.1\n")
    file = tmp_path / "data.yaml"
    file.write_text(f"train: train\nval: val\ntest: test\nnames: [{', '.join(NAMES)}]\n")
    return file


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the network is given."""
    shapes: list[tuple[int, ...]] = []
    update = Evaluation.update

    def record(self: Evaluation, network: torch.nn.Module, batch: Batch, *more: str) -> object:
        shapes.append(tuple(batch.images.shape))
        return update(self, network, batch, *more)

    monkeypatch.setattr(Evaluation, "update", record)
    return shapes


@pytest.mark.parametrize("option", ["--ckpt_path", "--model.weights"])
def test_parse__takes_what_the_file_says(
    option: str, checkpoint: Path, data_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CommandLine([f"--data.root={data_yaml}", f"{option}={checkpoint}"]).config
    assert (config.model.network, config.data.image_size) == ("yolo11n", 96)
    said = capsys.readouterr().err
    assert said == f"note: as in {checkpoint}: model.network yolo11n, data.image_size 96\n"


def test_parse__what_is_given_wins_and_a_line_says_so(
    checkpoint: Path, data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--model.network=yolo11n"]
    (tmp_path / "my.yaml").write_text("data: {image_size: 640}\n")
    for given in ("--data.image_size=640", f"--config={tmp_path / 'my.yaml'}"):  # also where it is the default
        assert CommandLine([*arguments, given]).config.data.image_size == 640
        assert capsys.readouterr().err == f"note: data.image_size is 640 here, 96 in {checkpoint}\n"
    CommandLine([*arguments, "--data.image_size=96"])
    assert capsys.readouterr().err == ""


def test_parse__printed_configuration_is_the_one_that_runs(
    checkpoint: Path, data_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        CommandLine([f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--print_config"])
    assert "image_size: 96" in capsys.readouterr().out


def test_parse__file_that_is_not_there_is_left_to_who_needs_it(data_yaml: Path) -> None:
    assert CommandLine([f"--data.root={data_yaml}", "--model.weights=none.pt"]).config.data.image_size == 640


def test_plan__is_for_the_network_and_size_of_the_weights(checkpoint: Path, data_yaml: Path) -> None:
    question = configured_question([f"--data.root={data_yaml}", f"--model.weights={checkpoint}"])
    assert (question.spec.model.network, question.image_sizes) == ("yolo11n", [96])


@pytest.mark.parametrize("file_format", ["ckpt", "ultralytics", "safetensors"])
def test_validate__measures_at_the_size_of_the_file(
    file_format: str,
    checkpoint: Path,
    data_yaml: Path,
    sizes: list[tuple[int, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file_format != "ckpt":
        checkpoint = export([f"--ckpt_path={checkpoint}", f"--format={file_format}"])
    arguments = [f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--data.workers=0"]
    capsys.readouterr()
    validate(arguments)
    assert sizes == [(3, 3, 96, 96)]  # all three, though a batch might be of 16
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{checkpoint}: yolo11n at 96 px in fp32: 3 val images with 6 objects"
    validate([*arguments, "--data.image_size=64", "--json"])
    assert sizes[1:] == [(3, 3, 64, 64)]
    told = json.loads(capsys.readouterr().out)
    assert (told["image_size"], told["split"], told["num_images"], told["network"]) == (64, "val", 3, "yolo11n")


@pytest.mark.parametrize(("split", "num_images"), [("test", 2), ("train", 1)])
def test_validate__on_another_split(
    split: str, num_images: int, checkpoint: Path, data_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--data.workers=0", f"--split={split}"]
    assert validate(arguments).num_images == num_images
    assert f"{num_images} {split} images with {2 * num_images} objects" in capsys.readouterr().out


def test_validate__says_which_classes_have_other_names(
    checkpoint: Path, data_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_yaml.write_text(data_yaml.read_text().replace("chip", "IC"))
    validate([f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--data.workers=0"])
    assert re.search(r"^note: .*: chip is IC here$", capsys.readouterr().err, re.MULTILINE)


def test_validate__images_without_label_files_count_as_images_without_objects(
    checkpoint: Path, data_yaml: Path
) -> None:
    (data_yaml.parent / "val/0.txt").unlink()
    results = validate([f"--data.root={data_yaml}", f"--ckpt_path={checkpoint}", "--data.workers=0"])
    assert (results.num_images, results.num_truth_C.tolist()) == (3, [2, 0, 2])
