"""Facts about a data set, and the settings that are suggested from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import ExifTags, Image

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine.command_line import first_configuration
from engine.command_line.cli import CommandLine
from engine.command_line.first_configuration import DataFacts, examine_data, render, suggest
from engine.machine.inventory import Gpu, Machine, examine_machine
from engine.memory.units import GIB

FACTS = DataFacts(num_images=939, num_boxes=9000, num_classes=8, small_side_rel=0.05, long_side_px=1280)


@pytest.fixture
def machine_with_gpu() -> Machine:
    return replace(examine_machine(), gpus=[Gpu("RTX 4080 SUPER", (8, 9), 16 * GIB, 15 * GIB, [])], cores=16)


def test_examine_data__measures_boxes_in_parts_of_the_long_side(tmp_path: Path) -> None:
    config = SyntheticConfig(num_train=12, num_val=4, image_size=96)
    facts = examine_data(generate_pcb_dataset(tmp_path / "my boards", config))
    assert (facts.num_images, facts.long_side_px) == (12, 96)
    assert 0.01 < facts.small_side_rel < 0.3


def test_examine_data__takes_pictures_upright(tmp_path: Path) -> None:
    """Stored 96 x 48, to be turned by a quarter: a box of 0.5 x 0.1 is 24 x 9.6 pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 48)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a]\n")
    facts = examine_data(tmp_path / "data.yaml")
    assert facts.long_side_px == 96 and facts.small_side_rel == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("small_side_rel", "long_side_px", "image_size"),
    [(0.05, 1280, 640), (0.011, 4000, 800), (0.001, 4000, 1280), (0.001, 800, 800), (0.001, 200, 640)],
)
def test_image_size__is_large_enough_for_small_boxes(small_side_rel: float, long_side_px: int, image_size: int) -> None:
    assert replace(FACTS, small_side_rel=small_side_rel, long_side_px=long_side_px).image_size == image_size


@pytest.mark.parametrize(("num_images", "batch_size"), [(6260, 32), (130, 16), (64, 8), (3, 4)])
def test_batch_size__leaves_steps_in_an_epoch(num_images: int, batch_size: int) -> None:
    assert replace(FACTS, num_images=num_images).batch_size == batch_size


def test_suggest__uses_the_gpu_that_is_there(machine_with_gpu: Machine) -> None:
    settings = suggest("data.yaml", FACTS, machine_with_gpu)
    assert settings["model.network"] == "yolo11l" and settings["model.precision"] == "bf16"
    assert settings["trainer.accelerator"] == "gpu" and "data.workers" not in settings
    older = replace(machine_with_gpu, gpus=[replace(machine_with_gpu.gpus[0], capability=(7, 5))])
    assert suggest("data.yaml", FACTS, older)["model.precision"] == "fp16"
    bare = replace(machine_with_gpu, gpus=[])
    assert suggest("data.yaml", FACTS, bare)["model.precision"] == "fp32"


def test_render__is_the_same_settings_in_yaml(machine_with_gpu: Machine) -> None:
    settings = suggest("데이터: x # y.yaml", FACTS, machine_with_gpu) | {"seed_everything": 3}
    tree = yaml.safe_load(render(settings, FACTS))
    assert tree["data"]["root"] == "데이터: x # y.yaml" and tree["seed_everything"] == 3
    assert tree["memory"] == {"budget": "auto"}


def test_comments__are_for_keys_that_exist() -> None:
    keys = set(CommandLine(["--data.root=x"]).parser.get_defaults().keys())
    assert not set(first_configuration.COMMENTS) - keys
