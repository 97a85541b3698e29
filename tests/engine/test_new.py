"""A configuration for a data set and a machine: it parses, says why, and overwrites nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import ExifTags, Image

from data.synthetic import SyntheticConfig, generate_pcb_dataset
from engine import new as new_module
from engine.cli import CommandLine
from engine.errors import ConfigError
from engine.machine import Gpu, Machine, examine_machine
from engine.memory.units import GIB
from engine.new import DataFacts, examine_data, main, render, suggest
from tests.helpers.faults import FULL, full_disk

FACTS = DataFacts(num_images=939, num_boxes=9000, num_classes=8, small_side_rel=0.05, long_side_px=1280)


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SyntheticConfig(num_train=12, num_val=4, image_size=96)
    return generate_pcb_dataset(tmp_path_factory.mktemp("data") / "my boards", config)


@pytest.fixture
def machine_with_gpu() -> Machine:
    return replace(examine_machine(), gpus=[Gpu("RTX 4080 SUPER", (8, 9), 16 * GIB, 15 * GIB, [])], cores=16)


def test_new__writes_what_parses(data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "my.yaml"
    main([str(data_yaml), "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert config.data.root == str(data_yaml) and config.data.micro_batch_size == "auto"
    assert config.model.recompute == "auto" and config.memory.budget == "auto"
    said = capsys.readouterr().out
    assert "12 training images" in said and f"python -m engine.fit --config {output}" in said
    assert "# images per optimizer step" in output.read_text()


def test_new__translates_a_command_into_what_parses(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my.yaml"
    command = (
        f"yolo detect train data='{data_yaml}' model=yolo11l.pt epochs=200 batch=16 accumulate=2 imgsz=640 device=cpu "
        "amp=True optimizer=AdamW lr0=0.002 patience=100 seed=7 box=7 hsv_h=0.01 iou=0.6 time=2 freeze=3"
    )
    main(["--from-command", command, "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert (config.data.batch_size, config.trainer.max_epochs, config.seed_everything) == (32, 200, 7)
    assert (config.model.network, config.model.optimizer.lr, config.model.nms.iou) == ("yolo11l", 0.002, 0.6)
    said = capsys.readouterr().out
    assert "accumulate=2" in said and "never an argument of Ultralytics" in said


def test_new__translates_an_args_yaml_into_what_parses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "task": "detect", "mode": "train", "model": "yolo11m.pt", "data": "elsewhere/data.yaml", "epochs": 50,
        "batch": 8, "imgsz": 800, "device": "0", "optimizer": "SGD", "lr0": 0.01, "momentum": 0.937,
        "warmup_bias_lr": 0.1, "amp": True, "nbs": 64, "save": True, "plots": True, "conf": None,
        "format": "torchscript",
    }  # fmt: skip
    path, output = tmp_path / "args.yaml", tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(arguments))
    main(["--from-args", str(path), "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert config.data.root == "elsewhere/data.yaml" and config.data.batch_size == 64
    assert config.model.optimizer.name == "sgd" and config.model.schedule.warmup_bias_lr == 0.1
    said = capsys.readouterr().out
    assert "plots" not in said and "format" not in said  # defaults that become nothing are no news


def test_new__overwrites_nothing(data_yaml: Path, tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    output.write_text("mine")
    with pytest.raises(ConfigError, match=r"--output: .*my\.yaml: exists: choose another file"):
        main([str(data_yaml), "--output", str(output)])
    assert output.read_text() == "mine"


def test_new__leaves_nothing_that_does_not_parse(tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    with pytest.raises(ConfigError, match=r"max_epochs.*many"):
        main(["--from-command", "yolo detect train data=x epochs=many", "--output", str(output)])
    assert not output.exists()


def test_new__that_cannot_be_written_is_one_line_and_leaves_nothing(data_yaml: Path, tmp_path: Path) -> None:
    output = tmp_path / "none" / "my.yaml"
    with pytest.raises(ConfigError, match=r"^--output: .*my\.yaml: cannot be written \(No such file or directory\): "):
        main([str(data_yaml), "--output", str(output)])
    output = tmp_path / "my.yaml"
    with full_disk(at_bytes=100), pytest.raises(ConfigError, match=rf"^--output: .*cannot be written \({FULL}\): "):
        main([str(data_yaml), "--output", str(output)])
    assert not output.exists()


def test_new__shows_commands_that_can_be_copied(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(data_yaml), "--output", str(tmp_path / "my boards.yaml")])
    assert f"python -m engine.fit --config '{tmp_path}/my boards.yaml'  # train" in capsys.readouterr().out


def test_new__leaves_amp_off_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_with_gpu: Machine
) -> None:
    for machine, precision in ((machine_with_gpu, "fp16"), (replace(machine_with_gpu, gpus=[]), "fp32")):
        monkeypatch.setattr(new_module, "examine_machine", lambda machine=machine: machine)
        output = tmp_path / f"{precision}.yaml"
        main(["--from-command", "yolo detect train data=x", "--output", str(output)])
        assert yaml.safe_load(output.read_text())["model"]["precision"] == precision


def test_new__needs_a_data_set() -> None:
    with pytest.raises(ConfigError, match=r"DATA\.yaml: missing"):
        main(["--from-command", "yolo detect train epochs=3"])


def test_examine_data__measures_boxes_in_parts_of_the_long_side(data_yaml: Path) -> None:
    facts = examine_data(data_yaml)
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
    assert settings["trainer.accelerator"] == "gpu" and settings["data.workers"] == 8
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
    assert not set(new_module.COMMENTS) - keys
