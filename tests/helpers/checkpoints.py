"""A network that has learned a few drawn boards by heart: for tests of what happens to weights after a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

import engine.command_line.cli
from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from data.formats.dataset_yaml import read_dataset_yaml
from engine.fit import main as fit
from engine.run.folder import CHECKPOINTS

IMAGE_SIZE = 96
EPOCHS = 120


@dataclass
class Overfitted:
    """A finished run."""

    checkpoint: Path
    data_yaml: Path
    """Its validation images are its training images."""
    names: list[str]

    @property
    def images(self) -> list[Path]:
        """The pictures, 96 x 96 pixels."""
        return sorted((self.data_yaml.parent / "images" / "train").iterdir())


def last_epoch(folder: Path) -> ModelCheckpoint:
    """Instead of a checkpoint after each of the many short epochs."""
    return ModelCheckpoint(folder / CHECKPOINTS, "last", every_n_epochs=EPOCHS)


def overfitted_in(folder: Path) -> Overfitted:
    """The run in a folder; it is made if it is not there."""
    checkpoint, data_yaml = folder / "run" / CHECKPOINTS / "last.ckpt", folder / "boards" / "overfit.yaml"
    if not checkpoint.exists():
        _overfit(folder)
    return Overfitted(checkpoint, data_yaml, list(read_dataset_yaml(data_yaml).names))


def _overfit(folder: Path) -> None:
    """Train yolo11n on 16 boards for about half a minute; mAP50 is then around 0.25."""
    boards = generate_pcb_dataset(
        folder / "boards", SyntheticConfig(num_train=16, num_val=2, image_size=IMAGE_SIZE)
    ).parent
    content = yaml.safe_load((boards / "data.yaml").read_text())
    content |= {"path": str(boards), "val": content["train"]}
    (boards / "overfit.yaml").write_text(yaml.safe_dump(content))
    arguments = [
        "--config=configs/quickstart.yaml",
        f"--data.root={boards / 'overfit.yaml'}",
        f"--run.folder={folder / 'run'}",
        f"--data.image_size={IMAGE_SIZE}",
        "--data.batch_size=8",
        "--data.workers=0",
        "--data.augment.mosaic=0",
        "--data.augment.scale=0.1",
        "--model.optimizer.lr=0.004",
        "--model.ema.ramp_steps=10",
        "--model.ema.decay=0.9",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.check_val_every_n_epoch={EPOCHS}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.command_line.cli, "default_callbacks", lambda folder, config: [last_epoch(folder)])
        fit(arguments)
