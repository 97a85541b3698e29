"""Ultralytics' arguments, key by key."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from engine.cli_errors import ULTRALYTICS_KEYS
from engine.errors import ConfigError
from engine.migrate import LEFT_OUT, OTHER_MODES, RENAMED, Translation, parse_command, read_args_yaml, translate

GUIDE = (
    "yolo detect train data=data.yaml model=yolo11l.pt epochs=200 batch=16 accumulate=2 imgsz=640 device=0 amp=True "
    "optimizer=AdamW lr0=0.002 patience=100"
)


def translated(command: str, **options: object) -> Translation:
    return translate(parse_command(command), **options)


def remark_on(translation: Translation, theirs: str) -> str:
    return next(line.remark for line in translation.lines if line.theirs.startswith(theirs))


def test_translate__the_command_that_users_have() -> None:
    translation = translated(GUIDE)
    assert translation.settings == {
        "data.root": "data.yaml",
        "model.network": "yolo11l",
        "model.weights": "yolo11l.pt",
        "trainer.max_epochs": 200,
        "data.batch_size": 32,
        "data.micro_batch_size": "auto",
        "data.image_size": 640,
        "trainer.accelerator": "gpu",
        "trainer.devices": [0],
        "model.precision": "fp16",
        "model.optimizer.name": "adamw",
        "model.optimizer.lr": 0.002,
        "run.patience": 100,
    }
    assert "never an argument of Ultralytics" in remark_on(translation, "accumulate=2")
    assert len(translation.lines) == len(GUIDE.split()) - 3  # every key=value has its line


def test_parse_command__takes_line_ends_and_comments_as_people_write_them() -> None:
    lines = ["yolo detect train \\", " data='my data.yaml' \\", " batch=16 \\   # 실제 배치", " device=0,1 amp=False"]
    arguments = {"task": "detect", "mode": "train", "data": "my data.yaml", "batch": 16, "device": "0,1", "amp": False}
    assert parse_command("\n".join(lines)) == arguments


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("yolo segment train data=x", "task is segment: only 'yolo detect train'"),
        ("yolo detect val data=x", "mode is val"),
        ("yolo detect train batch = 16", "=: expected key=value|batch: expected key=value"),
        ("yolo detect train data='x", "No closing quotation"),
        ("", "is empty"),
        ("yolo train batch=auto", "--from-command: batch is auto: give a number"),
        ("yolo train imgsz=640,480", "imgsz is 640,480: give a number"),
        ("yolo train imgsz=[]", r"imgsz is \[\]: give a number"),
        ("yolo train accumulate=True", "accumulate is true: give a number"),
        ("yolo train time=long", "time is long: give a number"),
        ("yolo train data=[a,b]", r"data is \[a, b\]: give the path of one data\.yaml"),
    ],
)
def test_parse_command__rejects_what_it_cannot_translate(command: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_command(command)


@pytest.mark.parametrize("value", ["*.yaml", "[a", "@1", "2026-99-99"])
def test_parse_command__takes_for_a_text_what_is_no_yaml(value: str) -> None:
    assert parse_command(f"yolo train name={value}")["name"] == value


@pytest.mark.parametrize(
    ("arguments", "effective"),
    [
        ("", 64), ("batch=16", 64), ("batch=32", 64), ("batch=40", 80), ("batch=48", 48), ("batch=20", 60),
        ("batch=64", 64), ("batch=128", 128), ("batch=16 nbs=16", 16), ("batch=-1", 64), ("batch=8 accumulate=3", 24),
    ],
)  # fmt: skip
def test_translate__the_effective_batch_is_what_a_step_really_had(arguments: str, effective: int) -> None:
    translation = translated(f"yolo detect train data=x {arguments}")
    assert translation.settings["data.batch_size"] == effective
    assert translation.settings["data.micro_batch_size"] == "auto"


def test_translate__a_share_of_the_memory_is_a_budget() -> None:
    assert translated("yolo train data=x batch=0.7").settings["memory.budget"] == 0.7


@pytest.mark.parametrize(
    ("argument", "settings", "remark"),
    [
        ("model=yolo11s.yaml", {"model.network": "yolo11s"}, "random weights"),
        ("model=yolov8m.pt", {"model.network": "yolo11m"}, "YOLO11 only"),
        ("model=runs/detect/train/weights/best.pt", {"model.weights": "runs/detect/train/weights/best.pt"}, "its size"),
        ("imgsz=650", {"data.image_size": 672}, "multiple of 32"),
        ("imgsz=[640,800]", {"data.image_size": 800}, "the larger side"),
        ("amp=bf16", {"model.precision": "bf16"}, ""),
        ("device=cpu", {"trainer.accelerator": "cpu", "trainer.devices": 1}, ""),
        ("device=0,1", {"trainer.accelerator": "gpu", "trainer.devices": [0, 1]}, ""),
        ("optimizer=Adam", {"model.optimizer.name": "adamw"}, "no Adam here"),
        ("cos_lr=True", {"model.schedule.decay": "cosine"}, ""),
        ("freeze=10", {"model.freeze_layers": 10}, "BatchNorm"),
        ("time=2.5", {"trainer.max_time": "00:02:30:00"}, "schedule"),
        ("project=runs/pcb name=first", {"run.folder": "runs/pcb/first"}, ""),
        ("hsv_h=0.01", {"data.augment.hsv_h": 0.01}, ""),
        ("resume=True", {}, "--ckpt_path"),
        ("batchsize=3", {}, "no argument of Ultralytics"),
        ("format=onnx", {}, "nothing in training"),
    ],
)
def test_translate__single_keys(argument: str, settings: dict, remark: str) -> None:
    translation = translated(f"yolo detect train data=x {argument}")
    line = next(line for line in translation.lines if line.theirs.startswith(argument.split("=")[0]))
    assert line.settings == settings
    assert remark in line.remark


def test_translate__bias_warm_up_is_for_sgd() -> None:
    assert "model.schedule.warmup_bias_lr" not in translated("yolo train optimizer=AdamW warmup_bias_lr=0.1").settings
    sgd = translated("yolo train optimizer=SGD warmup_bias_lr=0.1").settings
    assert sgd["model.schedule.warmup_bias_lr"] == 0.1


def test_translate__auto_ignores_the_learning_rate_as_ultralytics_does() -> None:
    translation = translated("yolo train data=x lr0=0.005", num_classes=25)
    assert translation.settings["model.optimizer.lr"] == round(0.002 * 5 / (4 + 25), 6)
    assert "did not use it" in remark_on(translation, "lr0=0.005")


def test_keep_only__leaves_out_what_this_version_lacks() -> None:
    translation = translated("yolo train data=x cache=ram")
    translation.keep_only(set(translation.settings) - {"data.cache"})
    assert "data.cache" not in translation.settings
    assert remark_on(translation, "cache=ram") == "left out: there is no data.cache here"


@pytest.mark.parametrize("key", sorted(ULTRALYTICS_KEYS))
def test_translate__agrees_with_what_the_command_line_suggests(key: str) -> None:
    values = {"data": "x", "device": 0, "amp": True, "name": "a", "project": "b", "lr0": 0.01}
    arguments = {"optimizer": "AdamW", key: values.get(key, 2)}
    assert ULTRALYTICS_KEYS[key] in translate(arguments).settings


def test_every_argument_of_ultralytics_is_known() -> None:
    path = Path(find_spec("ultralytics").origin).parent / "cfg" / "default.yaml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
    handled = {
        "model", "pretrained", "batch", "nbs", "imgsz", "optimizer", "lr0", "momentum", "warmup_bias_lr", "cos_lr",
        "device", "amp", "project", "name", "freeze", "time", "cache",
    }  # fmt: skip
    assert not set(defaults) - {*RENAMED, *LEFT_OUT, *OTHER_MODES, *handled}
    lines = translate(defaults, is_complete=True).lines
    assert not [line.theirs for line in lines if "no argument of Ultralytics" in line.remark]
    assert not [key for key, (default, _) in LEFT_OUT.items() if key in defaults and defaults[key] != default]


@pytest.mark.parametrize("text", ["[1, 2]", "names: [a]", "{", "\x00"])
def test_read_args_yaml__rejects_other_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "args.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--from-args: .*args\.yaml"):
        read_args_yaml(tmp_path / "args.yaml")


def test_read_args_yaml__rejects_what_cannot_be_reckoned_with(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("data: x\nbatch: many")
    with pytest.raises(ConfigError, match="--from-args: batch is many: give a number"):
        read_args_yaml(tmp_path / "args.yaml")
