from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from engine.errors import ConfigError
from engine.loop.module import Detector
from engine.planning.simulation import StepSpec, network_on_meta
from engine.run.checkpoint import network_description
from engine.run.starting_network import changed_key, is_gone, starting_network
from engine.training.config import ModelConfig
from models.network import build_network, class_width

OWN = "tests/helpers/boards.yaml"


def save(path: Path, network: str, num_classes: int) -> Path:
    """A yolofit checkpoint of a random network."""
    built = build_network(network, num_classes)
    names = [str(number) for number in range(num_classes)]
    about = network_description(network, names, 96, built.yaml)
    torch.save({"state_dict": {f"ema.network.{k}": v for k, v in built.state_dict().items()}, "yolofit": about}, path)
    return path


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_starting_network__is_as_wide_as_its_weights_in_plan_and_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig("yolo11n", weights=save(tmp_path / "coco.ckpt", "yolo11n", 80), recompute="none")
    random_state = torch.get_rng_state()
    architecture, stride_px = starting_network(config.network, 8, config.weights)
    assert torch.equal(torch.get_rng_state(), random_state) and stride_px == 32
    detector = Detector(config, [f"part {number}" for number in range(8)], 4, 2, 96)
    assert class_width(detector.network) == 80
    table = capsys.readouterr().err.splitlines()
    assert sum(int(line.split()[-2]) for line in table[2:-1]) == 6  # of 499 tensors are re-initialized: the class rows
    planned = network_on_meta(StepSpec(config, num_classes=8, architecture=architecture).network, 8)
    assert shapes(planned.network) == shapes(detector.network)
    again = starting_network("yolo11n", 8, None, save_result(detector, tmp_path / "best.ckpt"))
    assert class_width(build_network(again.architecture, 8)) == 80


def save_result(detector: Detector, path: Path) -> Path:
    torch.save(detector.result(), path)
    return path


def test_starting_network__comes_from_a_file_whose_yaml_is_gone(tmp_path: Path) -> None:
    own = shutil.copy(OWN, tmp_path / "own.yaml")
    file = save(tmp_path / "best.ckpt", str(own), 3)
    Path(own).unlink()
    for where in ({"weights": file}, {"checkpoint": file}):
        architecture, stride_px = starting_network(str(own), 5, **where)
        assert stride_px == 16 and architecture["yaml_file"] == "own.yaml" and architecture["nc"] == 5
    with pytest.raises(ConfigError, match=rf"^model\.network: {re.escape(str(own))}: not a file, and"):
        starting_network(str(own), 5)


def test_changed_key__ignores_classes_and_names(tmp_path: Path) -> None:
    theirs = starting_network(OWN, 3).architecture
    own = tmp_path / "own.yaml"
    own.write_text(Path(OWN).read_text().replace("nc: 80", "nc: 5"))
    assert changed_key(str(own), theirs) is None
    own.write_text(Path(OWN).read_text().replace("0.25, 1024", "0.5, 1024"))
    assert changed_key(str(own), theirs) == "scales" and not is_gone(str(own))
    own.write_text("backbone: [")
    with pytest.raises(ConfigError, match=r"^model\.network: .*own\.yaml: is not YAML"):
        changed_key(str(own), theirs)
    own.unlink()
    assert changed_key(str(own), theirs) is None and is_gone(str(own)) and not is_gone("yolov8n-p2.yaml")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("yolo11l.pt", "yolo11l.pt: is a file: give the name of the network, yolo11l; a file of weights belongs in"),
        ("yolov10n", "yolov10n: has an end-to-end head, which is not supported yet"),
        ("broken.yaml", "broken.yaml: cannot be built ("),
        ("unknown.yaml", "{folder}/unknown.yaml: layer 0: Kernel: is no layer of ultralytics"),
    ],
)
def test_starting_network__explains_a_network_that_cannot_be(network: str, message: str, tmp_path: Path) -> None:
    own = Path(OWN).read_text()
    (tmp_path / "broken.yaml").write_text(own.replace("[[6], 1, Detect", "[[66], 1, Detect"))
    (tmp_path / "unknown.yaml").write_text(own.replace("[-1, 1, Conv, [64, 3, 2]]", "[-1, 1, Kernel, [64, 3, 2]]"))
    given = str(tmp_path / network) if network.endswith(".yaml") else network
    message = f"model.network: {message}".replace("{folder}", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
        starting_network(given, 3)
    assert "\n" not in str(error.value)
