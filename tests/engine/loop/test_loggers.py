"""Loggers: a missing package is one line that teaches, and each gets the pictures in its own way."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.errors import ConfigError
from engine.loop import loggers as loggers_module
from engine.loop.loggers import check_logger_packages, combined_loggers, send_pictures
from engine.run.folder import default_loggers


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "results.png"
    Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "package"),
    [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow"), ("CometLogger", "comet_ml"), ("NeptuneLogger", "neptune")],
)
def test_check__a_missing_package_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers_module, "find_spec", lambda package: None)
    entry = {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {}}
    for given in (entry, [entry], SimpleNamespace(**entry)):
        with pytest.raises(ConfigError, match=rf"^trainer\.logger: {name}: .* pip install {package}") as error:
            check_logger_packages(given)
        assert "\n" not in str(error.value)


def test_check__passes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (None, True, False, [], {"class_path": "lightning.pytorch.loggers.CSVLogger"}):
        check_logger_packages(given)
    monkeypatch.setattr(loggers_module, "find_spec", lambda package: object() if package == "mlflow_skinny" else None)
    check_logger_packages({"class_path": "lightning.pytorch.loggers.MLFlowLogger"})


def test_combined__adds_to_the_defaults(tmp_path: Path) -> None:
    default, other = CSVLogger(tmp_path), CSVLogger(tmp_path, name="other")
    for configured, expected in (
        (None, [default]), (True, [default]), (False, []), (other, [default, other]), ([other], [default, other])
    ):  # fmt: skip
        assert combined_loggers(configured, [default]) == expected


def test_pictures__are_in_tensorboard(tmp_path: Path, picture: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    send_pictures([CSVLogger(tmp_path), logger], [picture], step=7)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    (image,) = events.Images("pictures/results")
    assert (image.step, image.width, image.height) == (7, 12, 8)


def test_pictures__are_in_the_tensorboard_of_a_run_and_small(tmp_path: Path) -> None:
    """The logger of a run, not Lightning's own; a contact sheet of photographs would be 8 MB as TensorBoard has it."""
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1600, 3), np.uint8)
    pictures = [tmp_path / "val_batch0_pred.jpg", tmp_path / "PR_curve.png"]
    for path in pictures:
        Image.fromarray(noise).save(path)
    loggers = default_loggers(tmp_path)
    send_pictures(loggers, pictures, step=3)
    for logger in loggers:
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["images"]) == {"pictures/val_batch0_pred", "pictures/PR_curve"}
    (image,) = events.Images("pictures/val_batch0_pred")
    decoded = Image.open(io.BytesIO(image.encoded_image_string))
    assert (image.step, image.width, image.height) == (3, *decoded.size)
    assert decoded.size[0] >= 600
    assert sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) < 600_000


class WandbLogger:
    def __init__(self) -> None:
        self.sent: list = []

    def log_image(self, key: str, images: list) -> None:
        self.sent.append((key, images))


class MLFlowLogger:
    run_id = "run"

    def __init__(self) -> None:
        self.sent: list = []
        self.experiment = SimpleNamespace(log_artifact=lambda *args: self.sent.append(args))


def test_pictures__go_to_others_in_their_way(picture: Path) -> None:
    wandb, mlflow = WandbLogger(), MLFlowLogger()
    send_pictures([wandb, mlflow], [picture], step=7)
    assert wandb.sent == [("pictures/results", [str(picture)])]
    assert mlflow.sent == [("run", str(picture), "pictures")]
