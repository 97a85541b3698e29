"""Ultralytics' arguments, key by key."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from engine.command_line.cli import CommandLine
from engine.command_line.explain import ULTRALYTICS_KEYS
from engine.errors import ConfigError
from engine.migration.python_calls import Unread
from engine.migration.translate import GROUPS, LEFT_OUT, NO_EFFECT, RENAMED, Translation, translate
from engine.migration.ultralytics_arguments import parse_command
from models.network import build_network

GUIDE = (
    "yolo detect train data=data.yaml model=yolo11l.pt epochs=200 batch=16 accumulate=2 imgsz=640 device=0 amp=True "
    "optimizer=AdamW lr0=0.002 patience=100"
)


def translated(command: str, **options: object) -> Translation:
    return translate(parse_command(command), **options)


@pytest.fixture(scope="module")
def defaults() -> dict:
    """Of the Ultralytics that is installed."""
    path = Path(find_spec("ultralytics").origin).parent / "cfg" / "default.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


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
        ("model=yolo11s", {"model.network": "yolo11s", "model.weights": "yolo11s.pt"}, "nothing is downloaded"),
        ("model=w/yolo11x.pt", {"model.network": "yolo11x", "model.weights": "w/yolo11x.pt"}, "nothing is downloaded"),
        (r"model=C:\w\yolo11x.pt", {"model.network": "yolo11x", "model.weights": r"C:\w\yolo11x.pt"}, "not here"),
        ("model=yolo11.yaml", {"model.network": "yolo11n"}, "random weights"),
        ("model=yolo11m.yaml pretrained=a.pt", {"model.network": "yolo11m"}, "an architecture"),
        ("model=yolo11m.pt pretrained=False", {"model.network": "yolo11m"}, "random weights"),
        ("model=yolov8n-p2.yaml", {"model.network": "yolov8n-p2"}, "an architecture, from random weights"),
        ("model=yolov8-p6.yaml imgsz=600", {"model.network": "yolov8n-p6"}, "random weights"),
        ("model=yolov3-tiny.yaml", {"model.network": "yolov3-tiny"}, "random weights"),
        ("model=tests/helpers/boards.yaml", {"model.network": "tests/helpers/boards.yaml"}, "an architecture"),
        ("model=custom.yaml", {}, "not an Ultralytics network. Check the path. Set"),
        ("model=yolo11-p2.yaml", {}, "left out: yolo11-p2.yaml: not a file, and"),
        ("model=yolov10n.yaml", {}, "left out: yolov10n: has an end-to-end head, which is not supported yet"),
        ("model=best.onnx", {}, "no file to train from"),
        ("model=yolov8m.pt", {"model.network": "yolov8m", "model.weights": "yolov8m.pt"}, "not here"),
        ("model=yolov5s6u.pt", {"model.network": "yolov5s-p6", "model.weights": "yolov5s6u.pt"}, "not here"),
        ("model=yolo12x.pt pretrained=False", {"model.network": "yolo12x"}, "from random weights"),
        ("model=yolo26n.pt", {}, "left out: yolo26n: has an end-to-end head, which is not supported yet"),
        ("model=rtdetr-l.pt", {}, "left out: rtdetr-l: no detector of ultralytics"),
        ("model=yolo11l-pcb.pt", {"model.weights": "yolo11l-pcb.pt"}, "Set model.network"),
        ("model=runs/a/weights/best.pt", {"model.weights": "runs/a/weights/best.pt"}, "its network cannot be told"),
        ("imgsz=650", {"data.image_size": 672}, "multiple of 32"),
        ("imgsz=650 model=yolov8n-p6.yaml", {"data.image_size": 704}, "multiple of 64"),
        ("imgsz=[640,800]", {"data.image_size": 800}, "the larger side"),
        ("amp=bf16", {"model.precision": "bf16"}, ""),
        ("device=cpu", {"trainer.accelerator": "cpu", "trainer.devices": 1}, ""),
        ("device=0,1", {"trainer.accelerator": "gpu", "trainer.devices": [0, 1]}, ""),
        ("device=[0,1]", {"trainer.accelerator": "gpu", "trainer.devices": [0, 1]}, ""),
        ("device=cuda:1", {"trainer.accelerator": "gpu", "trainer.devices": [1]}, ""),
        ("device=cuda", {"trainer.accelerator": "gpu", "trainer.devices": 1}, ""),
        ("device=-1,-1", {"trainer.accelerator": "gpu", "trainer.devices": 2}, "the first ones"),
        ("device=npu:0", {"trainer.accelerator": "auto", "trainer.devices": 1}, "not supported"),
        ("optimizer=Adam", {"model.optimizer.name": "adamw"}, "no Adam: AdamW"),
        ("optimizer=MuSGD", {"model.optimizer.name": "sgd"}, "no MuSGD: SGD"),
        ("cache=True", {"data.cache": "ram"}, ""),
        ("cache=disk", {"data.cache": "disk"}, ""),
        ("cache=False", {"data.cache": "none"}, ""),
        ("multi_scale=True", {"data.multi_scale": 0.5}, "up to Ultralytics 8.3"),
        ("multi_scale=0.25", {"data.multi_scale": 0.25}, ""),
        ("scale=0.5,1.5", {"data.augment.scale": 0.5}, ""),
        ("scale=0.9,2", {}, "not supported"),
        ("rect=True", {f"data.augment.{name}": 0.0 for name in ("mosaic", "mixup", "cutmix")}, "none of these"),
        ("workers=8", {}, "data.workers is auto"),
        ("workers=0", {"data.workers": 0}, ""),
        ("freeze=[0,1,2]", {"model.freeze_layers": 3}, "BatchNorm"),
        ("freeze=[22]", {}, "the first layers only"),
        ("freeze=[0,23.cv2]", {}, "the first layers only"),
        ("quantize=8", {}, "quantization-aware"),
        ("quantize=int8", {}, "quantization-aware"),
        ("int8=True", {}, "quantization-aware"),
        ("quantize=16", {}, "nothing in training"),
        ("single_cls=True", {}, "not supported: all classes are trained"),
        ("classes=[0,2]", {}, "not supported"),
        ("split=test", {}, "not supported"),
        ("fraction=0.5", {}, "not supported"),
        ("epoch=3", {}, "did you mean epochs?"),
        ("mosaic=True", {"data.augment.mosaic": 1.0}, ""),
        ("cos_lr=True", {"model.schedule.decay": "cosine"}, ""),
        ("freeze=10", {"model.freeze_layers": 10}, "BatchNorm"),
        ("time=2.5", {"trainer.max_time": "00:02:30:00"}, "schedule"),
        ("time=0.01", {"trainer.max_time": "00:00:00:36"}, "schedule"),
        ("project=runs/pcb name=first", {"run.folder": "runs/pcb/first"}, ""),
        ("hsv_h=0.01", {"data.augment.hsv_h": 0.01}, ""),
        ("resume=True", {}, "--ckpt_path"),
        ("batchsize=3", {}, "no argument of Ultralytics"),
        ("save_period=5", {}, "always written"),
        ("val=False", {}, "check_val_every_n_epoch"),
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


@pytest.mark.parametrize(
    ("arguments", "num_images", "optimizer", "lr"),
    [
        ("epochs=100", 6400, "adamw", 0.000345),  # 10,000 steps
        ("epochs=100", 6401, "sgd", 0.01),  # 10,100
        ("epochs=100 batch=128", 12_800, "adamw", 0.000345),  # 10,000 steps of 128
        ("epochs=100 batch=16 nbs=16", 1600, "adamw", 0.000345),
        ("epochs=100 batch=16 nbs=16", 1601, "sgd", 0.01),
        ("", 6401, "sgd", 0.01),  # 100 epochs by default
    ],
)
def test_translate__auto_takes_the_optimizer_that_ultralytics_takes(
    arguments: str, num_images: int, optimizer: str, lr: float
) -> None:
    translation = translated(f"yolo train data=x lr0=0.005 {arguments}", num_classes=25, num_images=num_images)
    assert translation.settings["model.optimizer.name"] == optimizer
    assert translation.settings["model.optimizer.lr"] == lr
    assert "model.schedule.warmup_bias_lr" not in translation.settings  # 0, as there
    assert ("MuSGD" in remark_on(translation, "optimizer")) == (optimizer == "sgd")
    assert "did not use it" in remark_on(translation, "lr0=0.005")


def test_translate__auto_says_what_cannot_be_told_without_the_data_set() -> None:
    translation = translated("yolo train data=x")
    remark = remark_on(translation, "optimizer")
    assert "cannot be told without the data set" in remark and "MuSGD" in remark
    assert "Set model.optimizer.lr to its rate, 0.01 / (4 + number of classes)" in remark
    assert "model.optimizer.lr" not in translation.settings


def test_translate__what_is_not_given_is_what_ultralytics_takes(defaults: dict) -> None:
    """Not what yolofit would suggest, or has for a default."""
    for name in ("SGD", "AdamW"):
        settings = translated(f"yolo train data=x optimizer={name}").settings
        assert settings["model.optimizer.lr"] == defaults["lr0"]
        assert settings["data.image_size"] == defaults["imgsz"]
        assert settings["data.batch_size"] == defaults["nbs"]
    sgd = translated("yolo train optimizer=SGD").settings
    assert sgd["model.schedule.warmup_bias_lr"] == defaults["warmup_bias_lr"]
    ours = CommandLine(["--data.root=x"]).config
    for key, (name, default) in RENAMED.items():
        if key not in ("data", "conf"):
            assert default == defaults[key], key
            assert ours[name] == default or key == "max_det", key  # which yields to crowded images there as well
    assert ours.data.augment.scale == defaults["scale"] and ours.model.nms.confidence == 0.001
    assert ours.model.optimizer.momentum == defaults["momentum"]


def test_translate__reads_which_network_a_file_of_weights_holds(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"yolofit": {"network": "yolo11s"}, "state_dict": build_network("yolo11n", 1).state_dict()}, path)
    settings = translated(f"yolo train data=x model={path}").settings
    assert settings["model.network"] == "yolo11s" and settings["model.weights"] == str(path)


def test_translate__says_when_the_data_set_is_smaller_than_a_batch() -> None:
    assert "one step of all 20 images" in remark_on(translated("yolo train data=x", num_images=20), "batch")
    assert "one step" not in remark_on(translated("yolo train data=x", num_images=64), "batch")


def test_translate__says_what_is_not_known_without_running_the_code() -> None:
    translation = translate({"data": "x", "batch": Unread("size()"), "nbs": 32, "epochs": Unread("n"), "box": 7})
    assert not {"data.batch_size", "trainer.max_epochs"} & set(translation.settings)
    assert "without running the code" in remark_on(translation, "batch=size()")
    assert "belongs to batch" in remark_on(translation, "nbs=32")
    assert "without running the code" in remark_on(translation, "epochs=n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": "auto"}, "P: batch: auto: not a number. Give a number."),
        ({"imgsz": [640, "x"]}, "P: imgsz: .640, x.: not a number"),
        ({"imgsz": []}, r"P: imgsz: \[\]: not a number"),
        ({"accumulate": True}, "P: accumulate: true: not a number"),
        ({"time": "long"}, "P: time: long: not a number"),
        ({"amp": "banana"}, "P: amp: banana: not supported. Give one of true, false, fp16, bf16, fp32"),
        ({"optimizer": "Lion"}, "P: optimizer: Lion: not supported. Give one of auto, adamw, sgd"),
        ({"batch": 2.5}, "P: batch: 2.5: not a whole number"),
        ({"epochs": 0}, "P: epochs: 0: out of range. Give at least 1"),
        ({"nbs": 0}, "P: nbs: 0: out of range. Give at least 1"),
        ({"lr0": float("nan")}, "P: lr0: .nan: not a number"),
    ],
)
def test_translate__rejects_values_that_ultralytics_would_not_take(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(arguments, place="P")


def test_translate__whole_numbers_are_whole() -> None:
    settings = translated("yolo train data=x epochs=1e2 batch=16.0 imgsz=640.0").settings
    found = [settings[key] for key in ("trainer.max_epochs", "data.batch_size", "data.image_size")]
    assert found == [100, 64, 640] and all(type(value) is int for value in found)


@pytest.mark.parametrize("key", sorted(set(ULTRALYTICS_KEYS)))
def test_translate__agrees_with_what_the_command_line_suggests(key: str) -> None:
    values = {"data": "x", "device": 0, "amp": True, "name": "a", "project": "b", "lr0": 0.01}
    arguments = {"optimizer": "AdamW", key: values.get(key, 2)}
    assert ULTRALYTICS_KEYS[key] in translate(arguments).settings


def test_every_argument_of_ultralytics_is_accounted_for_once(defaults: dict) -> None:
    grouped = [key for keys in GROUPS for key in keys]
    accounted = [*RENAMED, *LEFT_OUT, *NO_EFFECT, *grouped, "cfg"]
    assert not [key for key in defaults if accounted.count(key) != 1]
    assert not [key for key, (default, _) in LEFT_OUT.items() if key in defaults and defaults[key] != default]


def test_every_argument_of_ultralytics_has_a_line_unless_it_is_a_default(defaults: dict) -> None:
    """All defaults, and every key with another value: what is not said of the former is said of the latter."""
    given = {key: value for key, value in defaults.items() if value is not None} | {"data": "x", "model": "yolo11n.pt"}
    lines = {line.theirs.split("=")[0] for line in translate(given, is_complete=True).lines}
    assert lines == {"model", "batch", "imgsz", "optimizer", "amp", "data"}
    others = {"conf": 0.1, "freeze": 2, "time": 1, "distill_model": "a.pt", "quantize": 8, "classes": [1], "device": 0}
    for key, value in defaults.items():
        if key in NO_EFFECT or key in ("task", "mode", "cfg", "model", "data", "pretrained"):
            continue
        changed = "SGD" if isinstance(value, str) else not value if isinstance(value, bool) else (value or 0) + 1
        other = others.get(key, changed)
        base = {"optimizer": "SGD"} if key in ("momentum", "warmup_bias_lr", "lr0") else {}
        said = [line.theirs for line in translate(given | base | {key: other}, is_complete=True).lines]
        assert any(key in line for line in said), key
