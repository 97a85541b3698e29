"""A configuration for a data set and a machine: it parses, says why, and overwrites nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.utils import YAML

from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset
from engine import new as new_module
from engine.command_line.cli import CommandLine
from engine.errors import ConfigError
from engine.machine.inventory import Gpu, examine_machine
from engine.memory.units import GIB
from engine.new import main
from tests.helpers.faults import FULL, full_disk


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SyntheticConfig(num_train=12, num_val=4, image_size=96)
    return generate_pcb_dataset(tmp_path_factory.mktemp("data") / "my boards", config)


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


def test_new__takes_networks_of_every_family(data_yaml: Path, tmp_path: Path) -> None:
    output = tmp_path / "p6.yaml"
    command = f"yolo detect train data='{data_yaml}' model=yolov8n-p6.yaml imgsz=600 device=cpu"
    main(["--from-command", command, "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert (config.model.network, config.model.weights, config.data.image_size) == ("yolov8n-p6", None, 640)
    command = f"yolo detect train data='{data_yaml}' model=yolov8n.yaml imgsz=32 device=cpu"
    with pytest.raises(ConfigError, match=r"^imgsz=32: data\.image_size: 32: leaves the deepest layers one value"):
        main(["--from-command", command, "--output", str(tmp_path / "small.yaml")])


@pytest.fixture(scope="module")
def args_yaml(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the ``args.yaml`` that the installed Ultralytics leaves in the folder of a run, with some arguments."""

    def write(**arguments: object) -> Path:
        path = tmp_path_factory.mktemp("run") / "args.yaml"
        mine = {"model": "yolo11n.pt", "data": "elsewhere/data.yaml", "name": "train", "save_dir": "runs/detect/train"}
        YAML.save(path, vars(get_cfg(overrides=mine | arguments)) if "old" not in arguments else mine | arguments)
        return path

    return write


def test_new__translates_a_real_args_yaml_into_what_parses(
    args_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my.yaml"
    arguments = {"epochs": 50, "batch": 8, "imgsz": 800, "device": "0", "optimizer": "SGD"}
    main(["--from-args", str(args_yaml(**arguments)), "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert config.data.root == "elsewhere/data.yaml" and config.data.batch_size == 64
    assert config.model.optimizer.name == "sgd" and config.model.optimizer.lr == 0.01
    assert config.model.schedule.warmup_bias_lr == 0.1
    assert (config.data.image_size, config.trainer.max_epochs, config.trainer.devices) == (800, 50, [0])
    said = capsys.readouterr().out
    assert "plots" not in said and "format" not in said  # defaults that become nothing are no news
    assert "hsv_h" not in output.read_text() and "max_detections" not in output.read_text()
    assert len(output.read_text().splitlines()) < 40


@pytest.mark.parametrize("multi_scale", [False, 0.0, True, 0.5])
def test_new__takes_multi_scale_of_every_version(
    args_yaml: Callable[..., Path], tmp_path: Path, multi_scale: object
) -> None:
    output = tmp_path / "my.yaml"
    main(["--from-args", str(args_yaml(multi_scale=multi_scale)), "--output", str(output)])
    assert CommandLine([f"--config={output}"]).config.data.multi_scale == (0.5 if multi_scale else 0.0)


def test_new__takes_an_args_yaml_of_an_old_version(args_yaml: Callable[..., Path], tmp_path: Path) -> None:
    old = {"old": None, "v5loader": False, "label_smoothing": 0.0, "half": False, "int8": False, "boxes": True}
    output = tmp_path / "my.yaml"
    main(["--from-args", str(args_yaml(**old, line_thickness=3, multi_scale=False)), "--output", str(output)])
    assert CommandLine([f"--config={output}"]).config.model.network == "yolo11n"


@pytest.mark.parametrize(
    "command",
    [
        "yolo train data=x model=yolo11s.pt device=0,1 batch=0.7 cache=ram amp=False resume=True fraction=0.5",
        "yolo train data=x classes=[0,2] single_cls rect cos_lr close_mosaic=0 nbs=16 time=0.5 save_period=5 val=False",
        "yolo train data=x seed=3 deterministic=False freeze=[0,1,2] batch=-1 device=cpu optimizer=MuSGD quantize=8",
        "yolo train data=x model=yolov8n.pt max_det=500 conf=0.01 iou=0.6 imgsz=[480,640] scale=(0.5,1.5) workers=4",
        "YOLO('yolo11l.pt').train(data='x', imgsz=640, lr0=rate(), project='/a b', name='c: d # e')",
        "YOLO('yolo11l.yaml').load('a.pt').train(data='x', epochs=1e2, device=[0, 1], multi_scale=0.5)",
        "YOLO('yolo11l.pt').train(data='x', name='a\\nb: c', device=[], project=None)",
    ],
)
def test_new__what_is_written_parses(tmp_path: Path, command: str) -> None:
    output = tmp_path / "my.yaml"
    main(["--from-command", command, "--output", str(output)])
    config = CommandLine([f"--config={output}"]).config
    assert config.data.root == "x" and config.data.micro_batch_size == "auto"


def test_new__writes_down_no_workers(
    data_yaml: Path, args_yaml: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither those of this machine nor those of the one that the run was on."""
    sources = (["--from-args", str(args_yaml(workers=8))], ["--from-args", str(args_yaml(workers=3))])
    for number, arguments in enumerate(([str(data_yaml)], *sources, ["--from-command", "yolo train data=x workers=8"])):
        output = tmp_path / f"{number}.yaml"
        main([*arguments, "--output", str(output)])
        assert "workers" not in yaml.safe_load(output.read_text())["data"]
        assert CommandLine([f"--config={output}"]).config.data.workers == "auto"
    assert "workers=3" in capsys.readouterr().out


def test_new__names_what_was_written_by_whom_in_errors(args_yaml: Callable[..., Path], tmp_path: Path) -> None:
    """Not a file that is not there."""
    output = tmp_path / "my.yaml"
    source = args_yaml()
    source.write_text(source.read_text().replace("perspective: 0.0", "perspective: 0.1"))
    rule = r"^perspective=0\.1: data\.augment\.perspective: 0\.1: out of range\. Give a number from 0 to"
    with pytest.raises(ConfigError, match=rule) as error:
        main(["--from-args", str(source), "--output", str(output)])
    assert "my.yaml" not in str(error.value) and "new.yaml" not in str(error.value) and not output.exists()
    source.write_text(source.read_text().replace("perspective: 0.1", "perspective: 0.0"))
    source.write_text(source.read_text().replace("multi_scale: 0.0", "multi_scale: 0.01"))
    with pytest.raises(ConfigError, match=r"^multi_scale=0\.01: data\.multi_scale: 0\.01: is less than 32 pixels of"):
        main(["--from-args", str(source), "--output", str(output)])
    source.write_text(source.read_text().replace("epochs: 100", "epochs: many"))
    with pytest.raises(ConfigError, match=rf"^--from-args: {source}: epochs: many: not a number"):
        main(["--from-args", str(source), "--output", str(output)])


def test_new__says_in_one_line_that_the_data_set_is_not_here(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--from-command", "yolo train data=elsewhere/data.yaml", "--output", str(tmp_path / "a.yaml")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is missing, so images" in line]
    assert line.startswith("data.root: elsewhere/data.yaml: is missing")
    main(["--from-command", f"yolo train data='{data_yaml}'", "--output", str(tmp_path / "b.yaml")])
    assert "is missing, so images" not in capsys.readouterr().out


def test_new__uses_what_the_data_set_has_for_the_optimizer(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 images: an epoch is one step of Ultralytics' count."""
    for epochs, name in ((10_000, "adamw"), (10_001, "sgd")):
        output = tmp_path / f"{name}.yaml"
        main(["--from-command", f"yolo train data='{data_yaml}' epochs={epochs}", "--output", str(output)])
        assert yaml.safe_load(output.read_text())["model"]["optimizer"]["name"] == name
    assert "MuSGD" in capsys.readouterr().out and "MuSGD" in output.read_text()


def test_new__takes_the_data_set_that_is_named_before_the_command(
    data_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my.yaml"
    main([str(data_yaml), "--from-command", "yolo train data=elsewhere.yaml", "--output", str(output)])
    assert yaml.safe_load(output.read_text())["data"]["root"] == str(data_yaml)
    said = capsys.readouterr().out
    assert "12 training images" in said and "elsewhere" not in said


def test_new__takes_a_tilde_for_the_home(data_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(data_yaml.parent))
    main(["--from-command", "YOLO('yolo11n.pt').train(data='~/data.yaml')", "--output", str(tmp_path / "my.yaml")])
    assert yaml.safe_load((tmp_path / "my.yaml").read_text())["data"]["root"] == str(data_yaml)


def test_new__keeps_what_was_left_out_in_the_file(tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    main(["--from-command", "yolo train data=x single_cls=True", "--output", str(output)])
    assert "# single_cls=true: left out: not supported: all classes are trained" in output.read_text()
    assert "batch_size: 64  # batch (16 by default): Ultralytics accumulates 4 x 16" in output.read_text()


def test_new__overwrites_nothing(data_yaml: Path, tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    output.write_text("mine")
    with pytest.raises(ConfigError, match=r"--output: .*my\.yaml: exists: choose another file"):
        main([str(data_yaml), "--output", str(output)])
    assert output.read_text() == "mine"


def test_new__leaves_nothing_that_does_not_parse(tmp_path: Path) -> None:
    output = tmp_path / "my.yaml"
    with pytest.raises(ConfigError, match=r"--from-command: epochs: many: not a number"):
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


def test_new__leaves_amp_off_where_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, precision in (([Gpu("RTX 4080 SUPER", (8, 9), 16 * GIB, 15 * GIB, [])], "fp16"), ([], "fp32")):
        machine = replace(examine_machine(), gpus=gpus)
        monkeypatch.setattr(new_module, "examine_machine", lambda machine=machine: machine)
        output = tmp_path / f"{precision}.yaml"
        main(["--from-command", "yolo detect train data=x", "--output", str(output)])
        assert yaml.safe_load(output.read_text())["model"]["precision"] == precision


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("yolo detect train epochs=3", "give the data.yaml of a data set"),
        ("yolo detect train resume model=last.pt", "args.yaml in its folder: give that with --from-args"),
        ("YOLO('a.pt').train(data=find())", "cannot be known without running the code: give the data.yaml before"),
    ],
)
def test_new__needs_a_data_set(command: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"DATA\.yaml: missing: .*{remedy}"):
        main(["--from-command", command])
