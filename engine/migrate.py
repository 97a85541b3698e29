"""Translates what people train with today, an Ultralytics command or ``args.yaml``, key by key.

Every key is accounted for: what it becomes, or why it becomes nothing, and what was wrong with it. Nothing is read but
the data set's ``data.yaml``, for the number of classes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import ConfigError

NOMINAL_BATCH = 64
MAX_STRIDE_PX = 32
TASKS = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")
MODES = ("train", "val", "predict", "export", "track", "benchmark")
RENAMED = {
    "data": "data.root",
    "epochs": "trainer.max_epochs",
    "patience": "run.patience",
    "workers": "data.workers",
    "multi_scale": "data.multi_scale",
    "seed": "seed_everything",
    "lrf": "model.schedule.final_lr_fraction",
    "weight_decay": "model.optimizer.weight_decay",
    "warmup_epochs": "model.schedule.warmup_epochs",
    "warmup_momentum": "model.schedule.warmup_momentum",
    "iou": "model.nms.iou",
    "max_det": "model.nms.max_detections",
    "conf": "model.nms.confidence",
    **{name: f"model.loss.{name}" for name in ("box", "cls", "dfl")},
    **{
        name: f"data.augment.{name}"
        for name in (
            "close_mosaic", "degrees", "flipud", "fliplr", "hsv_h", "hsv_s", "hsv_v",
            "mosaic", "mixup", "cutmix", "perspective", "scale", "shear", "translate",
        )
    },
}  # fmt: skip
"""Keys that only change their name."""
LEFT_OUT = {
    "task": ("detect", "yolofit only detects"),
    "mode": ("train", "engine.fit trains, engine.validate validates"),
    "cfg": (None, "give its keys here as well: no file is read"),
    "exist_ok": (False, "a run never writes into another's folder"),
    "resume": (False, "resume with --ckpt_path RUN/checkpoints/last.ckpt"),
    "save": (True, "best.ckpt and last.ckpt are always written"),
    "save_period": (-1, "best.ckpt and last.ckpt are always written"),
    "plots": (True, "pictures and report.html are always made"),
    "val": (True, "every epoch is validated"),
    "verbose": (True, "there is one line an epoch"),
    "deterministic": (True, "for this: --trainer.deterministic warn"),
    "channels_last": (None, "chosen by yolofit"),
    "compile": (False, "slower than recompute level elementwise with fused kernels"),
    "profile": (False, "there is no such thing here"),
    "fraction": (1.0, "list the images to use in a .txt file and name it in data.yaml"),
    "single_cls": (False, "give data.yaml one name and the labels class 0"),
    "classes": (None, "every class of data.yaml is trained"),
    "rect": (False, "training images are square; for validation: data.rectangular_validation"),
    "copy_paste": (0.0, "it needs masks, which detection has not"),
    "bgr": (0.0, "use data.transforms"),
    "cls_pw": (0.0, "not supported"),
    "cls_remap": (True, "rows of classes are matched by their names"),
    "distill_model": (None, "not supported"),
    "dropout": (0.0, "for classification only"),
    "overlap_mask": (True, "for segmentation only"),
    "mask_ratio": (4, "for segmentation only"),
}
"""Keys that become nothing: Ultralytics' default, and what to know if the value is another."""
OTHER_MODES = frozenset({
    "agnostic_nms", "angle", "augment", "auto_augment", "copy_paste_mode", "dgrad", "dis", "dlam", "dlog", "dnn",
    "dynamic", "embed", "end2end", "erasing", "format", "half", "int8", "keras", "kobj", "line_width", "nms",
    "opset", "optimize", "pose", "quantize", "retina_masks", "rle", "save_conf", "save_crop", "save_dir",
    "save_frames", "save_json", "save_txt", "show", "show_boxes", "show_conf", "show_labels", "simplify", "source",
    "split", "stream_buffer", "tracker", "vid_stride", "visualize", "workspace"
})  # fmt: skip
"""Keys of other tasks and modes, which an ``args.yaml`` holds all the same."""

COUNTED = ("batch", "nbs", "accumulate", "imgsz", "time")
"""Keys whose values are reckoned with here; all others are checked where the configuration is."""


@dataclass
class Line:
    """What became of one key, or of several that belong together."""

    theirs: str
    """As people write it, such as ``batch=16``."""
    settings: dict[str, Any]
    """Ours, by key; empty if it is left out."""
    remark: str = ""
    """Why, or what was wrong with it."""

    def text(self) -> str:
        """Ours in one line."""
        return ", ".join(f"{key}: {_plain(value)}" for key, value in self.settings.items()) or "nothing"


@dataclass
class Translation:
    """What became of every key."""

    lines: list[Line] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Value by yolofit's key, such as ``data.batch_size``."""
        return {key: value for line in self.lines for key, value in line.settings.items()}

    def becomes(self, theirs: str, settings: dict[str, Any], remark: str = "") -> None:
        """Note what became of a key."""
        self.lines.append(Line(theirs, settings, remark))

    def keep_only(self, known_keys: set[str]) -> None:
        """Leave out what this version of yolofit has no key for, and say so."""
        for line in self.lines:
            unknown = [key for key in line.settings if key not in known_keys]
            for key in unknown:
                line.settings.pop(key)
            if unknown:
                line.remark = "; ".join([f"left out: there is no {', '.join(unknown)} here", line.remark]).rstrip("; ")


def parse_command(text: str) -> dict[str, Any]:
    """The arguments of a ``yolo detect train key=value ...`` command.

    Comments and backslashes at line ends are taken as people write them, also one before the other.

    Raises:
        ConfigError: If it is not such a command.
    """
    lines = [re.sub(r"\\?\s*(#.*)?$", "", line) for line in text.splitlines()]
    try:
        words = shlex.split(" ".join(lines))
    except ValueError as error:
        raise ConfigError(f"--from-command: {error}: put the whole command into single quotes") from error
    if words and Path(words[0]).name in ("yolo", "ultralytics"):
        words = words[1:]
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            arguments[key.strip().lstrip("-")] = _value(value)
        elif word in TASKS:
            arguments["task"] = word
        elif word in MODES:
            arguments["mode"] = word
        else:
            raise ConfigError(f"--from-command: {word}: expected key=value, such as batch=16, without blanks around =")
    if not arguments:
        raise ConfigError("--from-command: is empty: give a command such as 'yolo detect train data=data.yaml'")
    return _checked(arguments, "--from-command")


def read_args_yaml(path: Path) -> dict[str, Any]:
    """The arguments in an ``args.yaml`` that Ultralytics has left in a run's folder.

    Raises:
        ConfigError: If it cannot be read, or is another kind of file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--from-args: {path}: cannot be read ({reason}): give Ultralytics' args.yaml") from error
    if not isinstance(content, dict) or not {"data", "model", "epochs", "imgsz"} & set(content):
        raise ConfigError(f"--from-args: {path}: is no args.yaml of Ultralytics: it has neither data nor model")
    return _checked(content, "--from-args")


def translate(arguments: dict[str, Any], num_classes: int | None = None, is_complete: bool = False) -> Translation:
    """What the arguments of Ultralytics' training become.

    Args:
        arguments: By their names.
        num_classes: Of the data set, if known: the learning rate of ``optimizer=auto`` depends on it.
        is_complete: Whether every argument there is stands in it, defaults too, as in an ``args.yaml``: then
            those that become nothing and have their default are passed over.
    """
    result = Translation()
    rest = dict(arguments)
    for group in GROUPS:
        group(rest, result, num_classes)
    for key, value in rest.items():
        theirs = f"{key}={_plain(value)}"
        if key in RENAMED:
            if value is not None:
                result.becomes(theirs, {RENAMED[key]: value})
        elif key in LEFT_OUT:
            default, reason = LEFT_OUT[key]
            if value != default or not (is_complete or key in ("task", "mode")):
                result.becomes(theirs, {}, f"left out: {reason}")
        elif key not in OTHER_MODES:
            result.becomes(theirs, {}, "left out: no argument of Ultralytics' training, which would have refused it")
        elif not is_complete:
            result.becomes(theirs, {}, "left out: it does nothing in training")
    return result


def _batch(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    """``batch``, ``nbs`` and the ``accumulate`` that never was: together they are the effective batch."""
    has_batch = "batch" in rest
    batch, nominal = rest.pop("batch", None), rest.pop("nbs", None) or NOMINAL_BATCH
    batch = 16 if batch is None else batch
    accumulate = rest.pop("accumulate", None)
    shown = f"batch={_plain(batch)}" if has_batch else "batch (16 by default)"
    auto = {"data.micro_batch_size": "auto"}
    if isinstance(batch, float) and 0 < batch < 1:
        settings = {"data.batch_size": nominal, **auto, "memory.budget": batch}
        result.becomes(shown, settings, "a share of the VRAM: now a limit that is kept, not an estimate")
    elif batch < 1:
        remark = "AutoBatch fits a line and aims at 60 % of the VRAM; auto plans the split for the same effective batch"
        result.becomes(shown, {"data.batch_size": nominal, **auto}, remark)
    elif accumulate is not None:
        remark = f"{batch} x accumulate={accumulate}, as meant; the micro-batch is planned, and the split is exact"
        result.becomes(shown, {"data.batch_size": int(batch) * int(accumulate), **auto}, remark)
    else:
        effective = int(batch) * max(round(nominal / int(batch)), 1)
        remark = "the same" if effective == batch else f"Ultralytics accumulated {batch} up to nbs={nominal} unasked"
        result.becomes(shown, {"data.batch_size": effective, **auto}, f"{remark}; the micro-batch is planned")
    if accumulate is not None:
        per_step = max(round(nominal / int(batch)), 1) if batch >= 1 else 1
        remark = (
            "never an argument of Ultralytics, which ends with a SyntaxError; "
            f"by nbs={nominal} it would have accumulated {per_step}"
        )
        result.becomes(f"accumulate={accumulate}", {}, f"in data.batch_size: {remark}")
    if nominal != NOMINAL_BATCH:
        result.becomes(f"nbs={nominal}", {"model.optimizer.nominal_batch_size": nominal}, "scales weight decay only")


def _model(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    model, pretrained = rest.pop("model", None), rest.pop("pretrained", None)
    if model is not None:
        name = Path(str(model)).name
        match = re.fullmatch(r"(yolo(?:11|v?\d+))([nslmxcte])(?:u)?(\.pt|\.yaml)?", name)
        if match is None:
            remark = "its size cannot be told from its name: set model.network to the one that it has"
            result.becomes(f"model={model}", {"model.weights": str(model)}, remark)
        elif match[1] != "yolo11":
            size = match[2] if match[2] in "nslmx" else "m"
            remark = "yolofit trains YOLO11 only: the network of the same size, from random weights"
            result.becomes(f"model={model}", {"model.network": f"yolo11{size}"}, remark)
        elif match[3] == ".pt" and pretrained is not False:
            settings = {"model.network": f"yolo11{match[2]}", "model.weights": str(model)}
            result.becomes(f"model={model}", settings, "nothing is downloaded: the file must be there")
        else:
            result.becomes(f"model={model}", {"model.network": f"yolo11{match[2]}"}, "from random weights")
    if isinstance(pretrained, str):
        result.becomes(f"pretrained={pretrained}", {"model.weights": pretrained})
    elif pretrained is not None and model is None:
        result.becomes(f"pretrained={pretrained}", {}, "left out: give model.weights a file")


def _optimizer(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    name = str(rest.pop("optimizer", None) or "auto")
    lr, momentum = rest.pop("lr0", None), rest.pop("momentum", None)
    bias_lr, is_cosine = rest.pop("warmup_bias_lr", None), rest.pop("cos_lr", None)
    ignored = [f"{key}={value}" for key, value in (("lr0", lr), ("momentum", momentum)) if value is not None]
    if name == "auto":
        settings = {"model.optimizer.name": "adamw", "model.optimizer.momentum": 0.9}
        remark = f"it ignored {' and '.join(ignored)}" if ignored else "AdamW is what it takes for runs of this kind"
        if num_classes is not None:
            settings["model.optimizer.lr"] = round(0.01 / (4 + num_classes), 6)
            remark += "; the rate follows its formula for the number of classes"
        result.becomes("optimizer=auto", settings, remark)
        for word in ignored:
            result.becomes(word, {}, "left out: optimizer=auto did not use it")
    else:
        ours = name.lower() if name.lower() in ("adamw", "sgd") else "adamw"
        remark = "" if ours == name.lower() else f"there is no {name} here: AdamW is the nearest"
        result.becomes(f"optimizer={name}", {"model.optimizer.name": ours}, remark)
        for theirs, value, key in (("lr0", lr, "lr"), ("momentum", momentum, "momentum")):
            if value is not None:
                result.becomes(f"{theirs}={value}", {f"model.optimizer.{key}": value})
    if bias_lr is not None and result.settings["model.optimizer.name"] == "sgd":
        result.becomes(f"warmup_bias_lr={bias_lr}", {"model.schedule.warmup_bias_lr": bias_lr})
    elif bias_lr is not None:
        remark = "left out: with AdamW it moves every bias by that much in the first step; yolofit starts from 0"
        result.becomes(f"warmup_bias_lr={bias_lr}", {}, remark)
    if is_cosine is not None:
        result.becomes(f"cos_lr={is_cosine}", {"model.schedule.decay": "cosine" if is_cosine else "linear"})


def _device(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    device, amp = rest.pop("device", None), rest.pop("amp", True)
    text = str(device).strip("[]() ").replace(" ", "")
    is_cpu = text in ("cpu", "mps")
    if device is not None:
        if is_cpu:
            settings = {"trainer.accelerator": text, "trainer.devices": 1}
        elif re.fullmatch(r"(cuda:)?\d+(,\d+)*", text):
            numbers = [int(number) for number in text.removeprefix("cuda:").split(",")]
            settings = {"trainer.accelerator": "gpu", "trainer.devices": numbers}
        else:
            settings = {"trainer.accelerator": "auto", "trainer.devices": 1}
        result.becomes(f"device={_plain(device)}", settings)
    precision = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}.get(str(amp), "fp16" if amp else "fp32")
    remark = ""
    if is_cpu and precision == "fp16":
        precision, remark = "fp32", "Ultralytics leaves amp off on a CPU as well"
    elif precision == "fp16":
        remark = "bf16 needs the same memory and no scaling of the loss, on RTX 30 and later; the loss stays FP32"
    result.becomes(f"amp={amp}", {"model.precision": precision}, remark)


def _image_size(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    if (size := rest.pop("imgsz", None)) is None:
        return
    largest = max(size) if isinstance(size, list) else int(size)
    ours = -(-largest // MAX_STRIDE_PX) * MAX_STRIDE_PX
    remarks = ["images are square: the larger side"] if isinstance(size, list) else []
    remarks += [f"a multiple of {MAX_STRIDE_PX}, rounded up"] if ours != largest else []
    result.becomes(f"imgsz={_plain(size)}", {"data.image_size": ours}, "; ".join(remarks))


def _others(rest: dict[str, Any], result: Translation, num_classes: int | None) -> None:
    project, name = rest.pop("project", None), rest.pop("name", None)
    if project is not None or name is not None:
        shown = " ".join(f"{key}={value}" for key, value in (("project", project), ("name", name)) if value is not None)
        result.becomes(shown, {"run.folder": f"{project or 'runs'}/{name or 'fit'}"})
    freeze = rest.pop("freeze", None)
    if isinstance(freeze, list):
        result.becomes(f"freeze={freeze}", {}, "left out: yolofit freezes the first layers: model.freeze_layers N")
    elif freeze is not None:
        result.becomes(f"freeze={freeze}", {"model.freeze_layers": freeze}, "their BatchNorm is frozen too")
    if (hours := rest.pop("time", None)) is not None:
        minutes = round(float(hours) * 60)
        limit = f"{minutes // 1440:02d}:{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
        result.becomes(f"time={hours}", {"trainer.max_time": limit}, "the schedule still follows trainer.max_epochs")
    if (cached := rest.pop("cache", None)) is not None:
        mode = {"true": "ram", "ram": "ram", "disk": "disk"}.get(str(cached).lower(), "none")
        result.becomes(f"cache={cached}", {"data.cache": mode})


GROUPS: tuple[Callable[[dict[str, Any], Translation, int | None], None], ...] = (
    _model, _batch, _image_size, _optimizer, _device, _others,
)  # fmt: skip
"""Keys that belong together, or change their value."""


def _value(text: str) -> Any:
    """What a value means in YAML; what means nothing there, such as ``*.yaml``, is a text."""
    try:
        return yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError):  # the latter for a date such as 2026-99-99
        return text


def _checked(arguments: dict[str, Any], option: str) -> dict[str, Any]:
    """The arguments, if they are of training and what is reckoned with are numbers."""
    for key, wanted in (("task", "detect"), ("mode", "train")):
        if arguments.get(key, wanted) != wanted:
            raise ConfigError(f"{option}: {key} is {arguments[key]}: only 'yolo detect train' can be translated")
    for key in COUNTED:
        value = arguments.get(key)
        values = value if key == "imgsz" and isinstance(value, list) and value else [value]
        if not all(one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in values):
            raise ConfigError(f"{option}: {key} is {_plain(value)}: give a number")
    if not isinstance(data := arguments.get("data"), str | None):
        raise ConfigError(f"{option}: data is {_plain(data)}: give the path of one data.yaml")
    return arguments


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
