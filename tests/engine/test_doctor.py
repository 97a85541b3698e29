from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.command_line.cli import CommandLine
from engine.doctor import check_files, main
from engine.errors import ConfigError
from engine.run.checkpoint import network_description


def test_main__reports_torch_and_host(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    output = capsys.readouterr().out
    assert "torch" in output and "host" in output


@pytest.mark.parametrize(
    ("option", "evidence", "remedy"),
    [
        ("--data.root=/none/data.yaml", "/none/data.yaml: no such file", "→ Give the data.yaml of a data set."),
        ("--model.weights=/none.pt", "model.weights: /none.pt: no such file", "assets/releases"),
        ("--model.weights=README.md", "model.weights: README.md: ", "save it again"),
    ],
)
def test_main__looks_at_data_set_and_weights(
    option: str, evidence: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config=configs/quickstart.yaml", option])
    assert ended.value.code == 2
    output = " ".join(capsys.readouterr().out.split())
    assert evidence in output and remedy in output


@pytest.mark.parametrize(
    ("network", "message"),
    [("yolo11", r"yolo11: has no size: give one of yolo11n, .*"), ("none.yaml", r"none\.yaml: not a file, and .*")],
)
def test_main__explains_a_network_that_cannot_be(network: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.network: {message}$"):
        main(["--config=configs/quickstart.yaml", f"--model.network={network}"])


def test_check_files__weights_of_another_network_are_a_problem(tmp_path: Path) -> None:
    description = network_description("yolo11s", ["a"], 640)
    torch.save({"yolofit": description, "state_dict": {"network.x": torch.zeros(1)}}, tmp_path / "s.pt")
    config = CommandLine(["--config=configs/quickstart.yaml", f"--model.weights={tmp_path}/s.pt"]).config
    (finding,) = check_files(config)
    assert (finding.what, finding.severity) == ("weights", "problem")
    assert finding.remedy == "set model.network to it"
