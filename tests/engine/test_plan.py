"""The command prints a plan for people or for programs, and says what would fit if nothing does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine import plan
from engine.command_line.cli import CommandLine
from engine.errors import EXIT_STATUS, ConfigError, run_command
from engine.memory.units import GIB
from engine.planning.choose import COMPONENTS

SMALL = [
    "--data.root=synthetic", "--model.network=yolo11n", "--data.image_size=64", "--data.batch_size=8",
    "--data.micro_batch_size=4", "--model.recompute=none",
]  # fmt: skip


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    plan.main([*SMALL, "--json", *args])
    return json.loads(capsys.readouterr().out)


def test_plan__json_has_the_documented_form(capsys: pytest.CaptureFixture[str]) -> None:
    result = planned(capsys, "--budget", "2GiB", "--batch", "8", "--image-size", "64,96", "--model.precision=bf16")
    assert set(result) == {"budget_bytes", "rows", "recommended"}
    assert result["budget_bytes"] == 2 * GIB
    cells = [(row["micro_batch"], row["image_size"], row["precision"], row["recompute"]) for row in result["rows"]]
    assert len(cells) == len(set(cells)) == 2 * 3 * 3
    for row in result["rows"]:
        assert set(row) == {
            "micro_batch", "image_size", "precision", "recompute", "peak_bytes", "components", "verdict"
        }  # fmt: skip
        assert tuple(row["components"]) == COMPONENTS
        assert sum(row["components"].values()) == row["peak_bytes"]
        assert row["verdict"] in ("fits", "tight", "spills")
    recommended = result["recommended"]
    assert set(recommended) == {"micro_batch", "accumulate", "recompute", "precision", "peak_bytes"}
    assert (recommended["micro_batch"], recommended["accumulate"], recommended["precision"]) == (8, 1, "bf16")


def test_plan__without_a_configuration_is_about_yolo11l() -> None:
    question = plan._question(*plan._parser().parse_known_args([]))
    assert (question.spec.model.network, question.spec.model.precision) == ("yolo11l", "fp16")
    assert (question.micro_batches, question.image_sizes) == ([16, 32], [640, 800])
    assert (question.budget_bytes, question.batch_size) == (16 * GIB, 32)


@pytest.mark.parametrize("columns", [80, 120])
def test_plan__text_fits_the_terminal_and_its_snippet_parses(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    plan.main([*SMALL, "--budget", "2GiB", "--batch", "8"])
    text = capsys.readouterr().out
    assert "…" not in text and "\x1b" not in text
    assert all(words in text for words in ("as configured (micro-batch 4, fp32, none)", "Recommended"))
    file = tmp_path / "recommended.yaml"
    file.write_text(text.split("In the configuration:\n")[1])
    snippet = yaml.safe_load(file.read_text())
    given = [option for option in SMALL if "micro_batch" not in option and "recompute" not in option]
    config = CommandLine([*given, f"--config={file}"]).config
    assert config.data.batch_size == 8
    assert config.data.micro_batch_size == snippet["data"]["micro_batch_size"]
    assert config.model.recompute == snippet["model"]["recompute"]


def test_plan__nothing_fits_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["plan", *SMALL, "--json", "--budget", "300MiB"])
    with pytest.raises(SystemExit) as exit_:
        run_command(plan.main)
    out, err = capsys.readouterr()
    assert exit_.value.code == EXIT_STATUS
    assert out == ""
    assert err.startswith("error: memory.budget: 300.0 MiB: nothing fits") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budget", "16"], "--budget: 16: must be a positive size with its unit"),
        (["--batch", "16,many"], "--batch: 16,many: must be whole numbers"),
        (["--batch", "²"], "--batch: ²: must be whole numbers"),
        (["--data.root=x", "--data.batch_size=0"], "data.batch_size: 0: must be at least 1"),
        (["--data.root=x", "--data.image_size=650"], "data.image_size: 650: must be a multiple of 32"),
        (["--image-size", "650"], "--image-size: 650: must be a multiple of 32"),
        (["--boxes-per-image", "0"], "--boxes-per-image: 0: must be at least 1"),
        (["--data.root=synthetic", "--bugdet=2GiB"], "bugdet: no such key"),
    ],
    ids=str,
)
def test_plan__rejects_wrong_options(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan.main(args)
    assert str(error.value).startswith(message)


def test_plan__takes_classes_and_the_worst_mosaic_from_the_data_set(tmp_path: Path) -> None:
    root = generate_pcb_dataset(tmp_path / "boards", SyntheticConfig(num_train=6, num_val=1, image_size=160))
    counts = sorted(len(file.read_text().splitlines()) for file in (root.parent / "labels/train").glob("*.txt"))
    args = [f"--data.root={root}", "--model.network=yolo11n", "--data.batch_size=10"]
    mosaic = plan._configured_question(args)
    single = plan._configured_question([*args, "--data.augment.mosaic=0", "--model.optimizer.name=sgd"])
    assert mosaic.spec.num_classes == len(yaml.safe_load(root.read_text())["names"])
    assert mosaic.spec.boxes_per_image == sum(counts[-4:])
    assert (single.spec.boxes_per_image, single.spec.model.optimizer.name) == (counts[-1], "sgd")
    assert mosaic.micro_batches == [3, 5, 10]


def test_plan__says_what_it_assumes_if_the_data_set_is_not_there() -> None:
    question = plan._configured_question(["--data.root=nowhere/data.yaml"])
    assert question.spec.num_classes == 25
    assert question.notes == ("nowhere/data.yaml is not there: classes and boxes are assumed",)


def test_plan__shares_the_batch_between_devices() -> None:
    for devices, num_devices in (("4", 4), ("[0,1]", 2), ("auto", 1)):
        args = ["--data.root=synthetic", "--data.batch_size=30", f"--trainer.devices={devices}"]
        question = plan._configured_question(args)
        assert (question.batch_size, question.num_devices) == (-(-30 // num_devices), num_devices)


def test_plan__default_budget_is_stated_only_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [plan._configured_budget(budget) for budget in ("auto", 0.9, "10GiB")] == [16 * GIB, 16 * GIB, 10 * GIB]


def test_plan__shows_brackets_in_a_path_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    plan.main([*SMALL, "--data.root=/none/[b][/x].yaml"])
    assert "/none/[b][/x].yaml is not there" in " ".join(capsys.readouterr().out.split())
