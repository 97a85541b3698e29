"""Translates the arguments of Ultralytics' training into yolofit's configuration, key by key.

Each argument becomes a setting or is left out with a reason.
`engine.migration.ultralytics_arguments` reads the arguments. Nothing is read here except a file of weights, if it is on
this machine.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data.loading.sampler import STRIDE_PX
from engine.errors import ConfigError
from engine.migration.python_calls import Unread
from models.architecture import (
    NAME,
    SUFFIXES,
    Architecture,
    ArchitectureError,
    check_architecture,
    network_names,
    plain_name,
    read_architecture,
)
from models.network import build_network, input_step_px
from models.weights.saved_weights import DOWNLOADS, WeightsError, read_weights

BATCH, NOMINAL_BATCH, IMAGE_SIZE, EPOCHS, LR, MOMENTUM, BIAS_LR = 16, 64, 640, 100, 0.01, 0.937, 0.1
"""Ultralytics' defaults that a translation computes with. A test compares them with the installed version."""
ADAMW_STEPS = 10_000
"""Most steps of a run for which ``optimizer=auto`` takes AdamW."""
RENAMED: dict[str, tuple[str, Any]] = {
    "data": ("data.root", None),
    "epochs": ("trainer.max_epochs", EPOCHS),
    "patience": ("run.patience", 100),
    "seed": ("seed_everything", 0),
    "lrf": ("model.schedule.final_lr_fraction", 0.01),
    "weight_decay": ("model.optimizer.weight_decay", 0.0005),
    "warmup_epochs": ("model.schedule.warmup_epochs", 3.0),
    "warmup_momentum": ("model.schedule.warmup_momentum", 0.8),
    "iou": ("model.nms.iou", 0.7),
    "max_det": ("model.nms.max_detections", 300),
    "conf": ("model.nms.confidence", None),
    "box": ("model.loss.box", 7.5),
    "cls": ("model.loss.cls", 0.5),
    "dfl": ("model.loss.dfl", 1.5),
    "close_mosaic": ("data.augment.close_mosaic", 10),
    "degrees": ("data.augment.degrees", 0.0),
    "flipud": ("data.augment.flipud", 0.0),
    "fliplr": ("data.augment.fliplr", 0.5),
    "hsv_h": ("data.augment.hsv_h", 0.015),
    "hsv_s": ("data.augment.hsv_s", 0.7),
    "hsv_v": ("data.augment.hsv_v", 0.4),
    "mosaic": ("data.augment.mosaic", 1.0),
    "mixup": ("data.augment.mixup", 0.0),
    "cutmix": ("data.augment.cutmix", 0.0),
    "perspective": ("data.augment.perspective", 0.0),
    "shear": ("data.augment.shear", 0.0),
    "translate": ("data.augment.translate", 0.1),
}
"""Keys that only change their name: yolofit's key and the default, which both programs share."""
QUANTIZATION = "not supported: 8 bits train quantization-aware (QAT). Other values do nothing in training"
LEFT_OUT: dict[str, tuple[Any, str]] = {
    "task": ("detect", "yolofit only trains detectors"),
    "mode": ("train", "engine.fit trains, engine.validate validates"),
    "exist_ok": (False, "a run never writes into the folder of another run"),
    "resume": (False, "--ckpt_path resumes a run of yolofit. Of a run of Ultralytics, use the weights: model.weights"),
    "save": (True, "best.ckpt and last.ckpt are always written"),
    "save_period": (-1, "best.ckpt and last.ckpt are always written"),
    "plots": (True, "pictures and report.html are always written"),
    "val": (True, "every epoch is validated. trainer.check_val_every_n_epoch changes that"),
    "verbose": (True, "every epoch prints one line"),
    "deterministic": (True, "use --trainer.deterministic warn"),
    "channels_last": (None, "yolofit chooses the memory format"),
    "compile": (False, "recompute level elementwise with fused kernels is faster"),
    "profile": (False, "not supported"),
    "fraction": (1.0, "not supported: all images are trained. Give data.yaml a .txt file that lists fewer images"),
    "single_cls": (False, "not supported: all classes are trained. Give data.yaml one name, and all labels class 0"),
    "classes": (None, "not supported: every class of data.yaml is trained"),
    "agnostic_nms": (False, "not supported: in validation, boxes of different classes do not suppress each other"),
    "split": ("val", "not supported: training validates on val of data.yaml"),
    "bgr": (0.0, "not supported: use data.transforms"),
    "cls_pw": (0.0, "not supported: data.balance shows images of rare classes more often"),
    "cls_remap": (True, "weights of classes are always matched by their names"),
    "distill_model": (None, "not supported"),
    "quantize": (None, QUANTIZATION),
    "int8": (False, QUANTIZATION),
    "CUDA_VISIBLE_DEVICES": (None, "not part of a configuration. Set it for engine.fit in the same way"),
    "trainer": (None, "not supported: trainers of your own"),
    "augmentations": (None, "not translated. Write Albumentations into data.transforms"),
}
"""Keys that become nothing: Ultralytics' default, and what to know if the value differs from it."""
NO_EFFECT = frozenset({
    "angle", "augment", "auto_augment", "boxes", "copy_paste", "copy_paste_mode", "crop_fraction", "dgrad", "dis",
    "dlam", "dlog", "dnn", "dropout", "dynamic", "embed", "end2end", "erasing", "format", "half", "hide_conf",
    "hide_labels", "keras", "kobj", "label_smoothing", "line_thickness", "line_width", "mask_ratio", "nms", "opset",
    "optimize", "overlap_mask", "pose", "retina_masks", "rle", "save_conf", "save_crop", "save_dir", "save_frames",
    "save_hybrid", "save_json", "save_txt", "show", "show_boxes", "show_conf", "show_labels", "simplify", "source",
    "stream_buffer", "tracker", "vid_stride", "visualize", "workspace",
})  # fmt: skip
"""Keys of other tasks and modes, and old keys; an ``args.yaml`` contains them all the same."""
WHOLE_NUMBERS = ("epochs", "patience", "seed", "max_det", "close_mosaic", "batch", "nbs", "accumulate", "workers")
UNREAD = "cannot be known without running the code. Set it by hand"


@dataclass
class Line:
    """What one argument became, or several that belong together."""

    theirs: str
    """The argument as people write it, such as ``batch=16``."""
    settings: dict[str, Any]
    """yolofit's settings by key; empty if the argument is left out."""
    remark: str = ""
    """The reason, or what was wrong with the argument."""

    def text(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{key}: {plain(value)}" for key, value in self.settings.items()) or "nothing"

    def comment(self) -> str:
        """The argument and the remark on it."""
        return f"{self.theirs}: {self.remark}"


@dataclass
class Translation:
    """What every argument became."""

    lines: list[Line] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Values by yolofit's keys, such as ``data.batch_size``."""
        return {key: value for line in self.lines for key, value in line.settings.items()}

    def becomes(self, theirs: str, settings: dict[str, Any], remark: str = "") -> None:
        """Note what an argument became."""
        self.lines.append(Line(" ".join(theirs.split()), settings, " ".join(remark.split())))

    def left_out(self, theirs: str, reason: str) -> None:
        """Note that an argument became nothing."""
        self.becomes(theirs, {}, f"left out: {reason}")


@dataclass(frozen=True)
class Run:
    """The run of Ultralytics that is translated."""

    arguments: dict[str, Any]
    num_images: int | None = None
    """Training images, if the data set is on this machine."""
    num_classes: int | None = None
    is_complete: bool = False
    """Whether the arguments include the defaults, as an ``args.yaml`` does."""

    def is_news(self, key: str, default: Any) -> bool:
        """Whether an argument was given and is not only a default of an ``args.yaml``."""
        return key in self.arguments and not (self.is_complete and self.arguments[key] == default)


def translate(
    arguments: dict[str, Any],
    num_classes: int | None = None,
    num_images: int | None = None,
    *,
    is_complete: bool = False,
    place: str = "--from-command",
) -> Translation:
    """Translate the arguments of a training of Ultralytics.

    Args:
        arguments: By name, as `engine.migration.ultralytics_arguments` reads them.
        num_classes: Classes of the data set, if known; the learning rate of ``optimizer=auto`` depends on them.
        num_images: Training images, if known; the optimizer of ``optimizer=auto`` depends on them.
        is_complete: Whether the arguments include the defaults, as an ``args.yaml`` does. Defaults then get no line.
        place: Where the arguments are from, for messages.

    Raises:
        ConfigError: If Ultralytics would not accept a value.
    """
    run = Run(_numbers(arguments, place), num_images, num_classes, is_complete)
    for key, words in WORDS.items():
        value = run.arguments.get(key, words[0])
        if not isinstance(value, Unread) and str(value).lower() not in words:
            raise ConfigError(f"{place}: {key}: {plain(value)}: not supported. Give one of {', '.join(words)}.")
    result = Translation()
    rest = dict(run.arguments)
    for keys, group in GROUPS.items():
        given = {key: rest.pop(key) for key in keys if key in rest}
        unread = [key for key, value in given.items() if isinstance(value, Unread)]
        if unread:
            for key, value in given.items():
                reason = UNREAD if key in unread else f"it belongs to {unread[0]}, which is not known"
                result.left_out(_argument(key, value), reason)
        else:
            group(given, run, result)
    for key, value in rest.items():
        _single(key, value, run, result)
    return result


def plain(value: Any) -> str:
    """A value as YAML writes it, in one line."""
    if isinstance(value, Unread):
        return str(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")


def _argument(key: str, value: Any) -> str:
    return f"{key}={plain(value)}"


def _shown(given: dict[str, Any], key: str, default: Any) -> str:
    """An argument as it was given, or its default."""
    return _argument(key, given[key]) if key in given else f"{key} ({default} by default)"


def _single(key: str, value: Any, run: Run, result: Translation) -> None:
    """Translate a key that does not belong to a group."""
    theirs = _argument(key, value)
    if isinstance(value, Unread):
        result.left_out(theirs, UNREAD)
    elif key in RENAMED:
        ours, default = RENAMED[key]
        if run.is_news(key, default):
            result.becomes(theirs, {ours: value})
    elif key in LEFT_OUT:
        default, reason = LEFT_OUT[key]
        if value != default or not (run.is_complete or key in ("task", "mode")):
            result.left_out(theirs, reason)
    elif key not in NO_EFFECT:
        near = difflib.get_close_matches(key, known_keys(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        result.left_out(theirs, f"no argument of Ultralytics' training that yolofit knows{hint}")
    elif not run.is_complete:
        result.left_out(theirs, "it does nothing in training")


def _model(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``model`` and ``pretrained``: an architecture, a file of weights, or both."""
    model, pretrained = given.get("model"), given.get("pretrained", True)
    if model is None:
        result.left_out("model (yolo26n.pt by default)", "its end-to-end head is not supported. Set model.network")
    else:
        settings, remark = _network(str(model), uses_weights=pretrained is True)
        result.becomes(f"model={model}", settings, remark)
    if isinstance(pretrained, str):
        result.becomes(f"pretrained={pretrained}", {"model.weights": pretrained}, _missing(pretrained))
    elif run.is_news("pretrained", True):
        result.becomes(_argument("pretrained", pretrained), {}, "see model" if model else "left out: give a model")


def _network(model: str, uses_weights: bool) -> tuple[dict[str, Any], str]:
    """The settings that the name of a model becomes, and a remark."""
    name = re.split(r"[/\\]", model)[-1]  # of a path of Windows as well
    path = Path(name if "://" in model else model)
    plain = plain_name(name.lower())
    if path.suffix.lower() in SUFFIXES:
        return _architecture(path, plain)
    if path.suffix.lower() not in ("", ".pt", ".pth", ".ckpt", ".safetensors"):
        return {}, "left out: no file to train from. Set model.network"
    if plain in network_names():
        weights = str(path if path.suffix else path.with_suffix(".pt"))
        network = {"model.network": plain}
        return (network | {"model.weights": weights}, _missing(weights)) if uses_weights else (network, FROM_RANDOM)
    if (reason := _why_unknown(plain)) and not path.is_file():
        return {}, f"left out: {reason}. Set model.network"
    return _own_weights(path, uses_weights)


def _architecture(path: Path, plain: str) -> tuple[dict[str, Any], str]:
    """The settings for a YAML file of an architecture: a file that exists, or one of Ultralytics."""
    match = NAME.fullmatch(plain)
    if match and not match["scale"]:  # Ultralytics takes the first one
        plain = next((name for name in (plain, f"{match['family']}n{match['variant']}") if name in network_names()), "")
    network = plain if plain in network_names() and not path.is_file() else str(path)
    try:
        read_architecture(network)
    except ArchitectureError as error:
        reason = _why_unknown(plain) or str(error)
        return {}, f"left out: {reason.rstrip('.')}. Set model.network"
    return {"model.network": network}, f"an architecture, {FROM_RANDOM}"


def _why_unknown(plain: str) -> str:
    """Why a network of Ultralytics is not supported; empty for names that Ultralytics does not have."""
    match = NAME.fullmatch(plain)
    is_other_family = match and match["family"] + match["scale"] not in network_names()
    if not (is_other_family or plain.startswith(OTHER_FAMILIES)):
        return ""
    try:
        read_architecture(plain)
    except ArchitectureError as error:
        return str(error)
    return ""


def _own_weights(path: Path, uses_weights: bool) -> tuple[dict[str, Any], str]:
    """Settings for a file of weights whose name does not say which network it contains. Reads the file if it exists."""
    weights = {"model.weights": str(path)} if uses_weights else {}
    remedy = "Set model.network to the network of the file"
    if not path.is_file():
        return weights, f"its network cannot be told from its name, and the file is not here. {remedy}"
    try:
        saved = read_weights(path)
    except WeightsError as error:
        return weights, f"{str(error).rstrip('.')}. {remedy}"
    if saved.network and (saved.network in network_names() or (uses_weights and _is_detector(saved.architecture))):
        return {"model.network": saved.network} | weights, f"the file contains a {saved.network}"
    content = f"a {saved.network}" if saved.network else "a network without a name"
    return weights, f"the file contains {content}. {remedy}"


def _is_detector(architecture: Architecture | None) -> bool:
    try:
        check_architecture(architecture or {})
    except ArchitectureError:
        return False
    return True


def _missing(weights: str) -> str:
    """The remark on a file of weights that is not on this machine; empty if the file exists."""
    if Path(weights).is_file():
        return ""
    return f"the file is not here, and nothing is downloaded. Get it, for instance from {DOWNLOADS}"


def _batch(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``batch``, ``nbs`` and ``accumulate``, which Ultralytics never had: together they are the effective batch."""
    batch, nominal = given.get("batch", BATCH), given.get("nbs", NOMINAL_BATCH)
    accumulate = given.get("accumulate")
    shown = _shown(given, "batch", BATCH)
    auto = {"data.micro_batch_size": "auto"}
    if 0 < batch < 1:
        settings = {"data.batch_size": nominal, **auto, "memory.budget": batch}
        result.becomes(shown, settings, "a share of the VRAM, as a limit that training keeps")
    elif batch < 1:
        remark = "AutoBatch estimates 60 % of the VRAM. auto plans the micro-batch for the same effective batch"
        result.becomes(shown, {"data.batch_size": nominal, **auto}, remark)
    elif accumulate is not None:
        remark = f"{batch} x accumulate={accumulate}; the micro-batch is planned, and accumulation is exact"
        result.becomes(shown, {"data.batch_size": batch * accumulate, **auto}, remark)
    else:
        times = max(round(nominal / batch), 1)
        remark = "the same" if times == 1 else f"Ultralytics accumulates {times} x {batch} because of nbs={nominal}"
        if run.num_images is not None and run.num_images < batch * times:
            remark += f"; an epoch is one step of all {run.num_images} images. Ultralytics adds images of the next"
        result.becomes(shown, {"data.batch_size": batch * times, **auto}, f"{remark}; the micro-batch is planned")
    if accumulate is not None:
        per_step = max(round(nominal / batch), 1) if batch >= 1 else 1
        remark = (
            "in data.batch_size; never an argument of Ultralytics, which ends with a SyntaxError. "
            f"Because of nbs={nominal} it would have accumulated {per_step} micro-batches"
        )
        result.becomes(f"accumulate={accumulate}", {}, remark)
    if nominal != NOMINAL_BATCH:
        settings = {"model.optimizer.nominal_batch_size": nominal}
        result.becomes(f"nbs={nominal}", settings, "only scales the weight decay")


def _image_size(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``imgsz`` and ``multi_scale``, which was True or False up to Ultralytics 8.3."""
    size = given.get("imgsz", IMAGE_SIZE)
    largest = max(size) if isinstance(size, list) else size
    stride_px = _stride_px(result.settings.get("model.network"))
    ours = math.ceil(largest / stride_px) * stride_px
    remarks = ["images are square, with the larger side"] if isinstance(size, list) else []
    remarks += [f"rounded up to a multiple of {stride_px}"] if ours != largest else []
    result.becomes(_shown(given, "imgsz", IMAGE_SIZE), {"data.image_size": ours}, "; ".join(remarks))
    if scale := given.get("multi_scale"):
        remark = "from half the size to one and a half, as up to Ultralytics 8.3" if scale is True else ""
        settings = {"data.multi_scale": 0.5 if scale is True else scale}
        result.becomes(_argument("multi_scale", scale), settings, remark)


@cache
def _stride_px(network: str | None) -> int:
    """The largest stride of a network; the usual one if the network is unknown."""
    try:
        return input_step_px(build_network(network, 1)) if network else STRIDE_PX
    except ArchitectureError:
        return STRIDE_PX


def _optimizer(given: dict[str, Any], run: Run, result: Translation) -> None:
    """The optimizer and its rates."""
    name = str(given.get("optimizer", "auto")).lower()
    if name == "auto":
        _auto_optimizer(given, run, result)
    else:
        ours, remark = OPTIMIZERS[name]
        result.becomes(f"optimizer={given['optimizer']}", {"model.optimizer.name": ours}, remark)
        result.becomes(_shown(given, "lr0", LR), {"model.optimizer.lr": given.get("lr0", LR)})
        if run.is_news("momentum", MOMENTUM):
            result.becomes(_argument("momentum", given["momentum"]), {"model.optimizer.momentum": given["momentum"]})
        bias_lr, shown = given.get("warmup_bias_lr", BIAS_LR), _shown(given, "warmup_bias_lr", BIAS_LR)
        if ours == "sgd":
            result.becomes(shown, {"model.schedule.warmup_bias_lr": bias_lr})
        elif "warmup_bias_lr" in given:
            reason = "with AdamW the first step would move every bias by this value. yolofit begins at 0"
            result.left_out(shown, reason)
    if run.is_news("cos_lr", False):
        shape = "cosine" if given["cos_lr"] else "linear"
        result.becomes(_argument("cos_lr", given["cos_lr"]), {"model.schedule.decay": shape})


def _auto_optimizer(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``optimizer=auto``: MuSGD for long runs, else AdamW with a rate that depends on the number of classes."""
    batch, nominal = run.arguments.get("batch", BATCH), run.arguments.get("nbs", NOMINAL_BATCH)
    epochs = run.arguments.get("epochs", EPOCHS)
    is_known = run.num_images and not any(isinstance(one, Unread) for one in (batch, nominal, epochs))
    steps = math.ceil(run.num_images / max(batch, nominal)) * epochs if is_known and run.num_images else 0
    if steps > ADAMW_STEPS:
        settings = {"model.optimizer.name": "sgd", "model.optimizer.lr": LR}
        if (momentum := given.get("momentum", MOMENTUM)) != MOMENTUM:
            settings["model.optimizer.momentum"] = momentum
        remark = (
            f"Ultralytics takes MuSGD at a rate of {LR} for {steps:,} steps, more than {ADAMW_STEPS:,}. yolofit has no "
            "MuSGD: SGD at the same rate is the nearest"
        )
    else:
        settings = {"model.optimizer.name": "adamw", "model.optimizer.momentum": 0.9}
        remark = f"Ultralytics takes AdamW up to {ADAMW_STEPS:,} steps"
        remark += f" ({steps:,} here)" if steps else (
            f" and MuSGD for more; which one cannot be told without the data set. The nearest to MuSGD is sgd at {LR}"
        )  # fmt: skip
        if run.num_classes is not None:
            settings["model.optimizer.lr"] = round(0.002 * 5 / (4 + run.num_classes), 6)
            remark += f", at a rate of 0.01 / (4 + {run.num_classes} classes)"
        else:
            remark += ". Set model.optimizer.lr to its rate, 0.01 / (4 + number of classes)"
    result.becomes("optimizer=auto" if "optimizer" in given else "optimizer (auto by default)", settings, remark)
    for key, default in (("lr0", LR), ("momentum", MOMENTUM), ("warmup_bias_lr", BIAS_LR)):
        if run.is_news(key, default) and not (key == "momentum" and steps > ADAMW_STEPS):
            result.left_out(_argument(key, given[key]), "optimizer=auto did not use it")


def _device(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``device`` and ``amp``: the precision depends on both."""
    device, amp = given.get("device"), given.get("amp", True)
    text = re.sub(r"[\[\]()'\" ]|cuda:", "", str(device).lower())
    is_cpu = text in ("cpu", "mps")
    if device not in (None, "", []):
        remark = ""
        if is_cpu:
            settings: dict[str, Any] = {"trainer.accelerator": text, "trainer.devices": 1}
        elif re.fullmatch(r"\d+(,\d+)*,?", text):
            numbers = [int(number) for number in text.split(",") if number]
            settings = {"trainer.accelerator": "gpu", "trainer.devices": numbers}
        elif re.fullmatch(r"cuda|-1(,-1)*", text):
            settings = {"trainer.accelerator": "gpu", "trainer.devices": text.count(",") + 1}
            remark = "the first ones, whether they are idle or not" if "-1" in text else ""
        else:
            settings = {"trainer.accelerator": "auto", "trainer.devices": 1}
            remark = "not supported: yolofit trains on NVIDIA GPUs and CPUs"
        result.becomes(_argument("device", device), settings, remark)
    word = str(amp).lower()
    precision = word if word in ("bf16", "fp16", "fp32") else "fp16" if amp else "fp32"
    remark = ""
    if is_cpu and precision == "fp16":
        precision, remark = "fp32", "Ultralytics does not use amp on a CPU, either"
    elif precision == "fp16":
        remark = "on RTX 30 and later, bf16 needs the same memory and no loss scale. The loss is computed in fp32"
    result.becomes(_shown(given, "amp", True), {"model.precision": precision}, remark)


def _folder(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``project`` and ``name``, which are one folder."""
    if given:
        shown = " ".join(f"{key}={value}" for key, value in given.items())
        result.becomes(shown, {"run.folder": f"{given.get('project') or 'runs'}/{given.get('name') or 'fit'}"})


def _freeze(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``freeze``: a number of layers, or a list of them."""
    freeze = given.get("freeze")
    if not freeze:
        return
    layers = sorted(freeze, key=str) if isinstance(freeze, list) else list(range(freeze)) if _is_whole(freeze) else []
    if layers and layers == sorted(range(len(layers)), key=str):
        settings = {"model.freeze_layers": len(layers)}
        result.becomes(_argument("freeze", freeze), settings, "their BatchNorm is frozen as well")
    else:
        reason = "not supported: yolofit freezes the first layers only, with model.freeze_layers"
        result.left_out(_argument("freeze", freeze), reason)


def _time(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``time``, in hours."""
    if hours := given.get("time"):
        minutes, seconds = divmod(round(hours * 3600), 60)
        limit = f"{minutes // 1440:02d}:{minutes // 60 % 24:02d}:{minutes % 60:02d}:{seconds:02d}"
        remark = "the schedule follows trainer.max_epochs. Ultralytics fits the number of epochs into the time"
        result.becomes(f"time={hours}", {"trainer.max_time": limit}, remark)


def _cache(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``cache``. yolofit's default ``auto`` takes what fits."""
    if run.is_news("cache", False):
        mode = {"true": "ram", "ram": "ram", "disk": "disk"}.get(str(given["cache"]).lower(), "none")
        result.becomes(_argument("cache", given["cache"]), {"data.cache": mode})


def _workers(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``workers``, which describes the machine and not the recipe. Only 0 is kept."""
    if given.get("workers") == 0 and not run.is_complete:
        result.becomes("workers=0", {"data.workers": 0})
    elif run.is_news("workers", 8) and not (run.is_complete and given["workers"] == 0):
        reason = "data.workers is auto, which follows the cores and the RAM of the machine that trains"
        result.left_out(_argument("workers", given["workers"]), reason)


def _scale(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``scale``: a gain, or the smallest and the largest factor."""
    scale = given.get("scale")
    if isinstance(scale, list) and len(scale) == 2 and math.isclose(sum(scale), 2):
        result.becomes(_argument("scale", scale), {"data.augment.scale": round(max(scale) - 1, 6)})
    elif isinstance(scale, list):
        result.left_out(_argument("scale", scale), "not supported. Give one gain in data.augment.scale")
    elif run.is_news("scale", 0.5):
        result.becomes(_argument("scale", scale), {"data.augment.scale": scale})


def _rect(given: dict[str, Any], run: Run, result: Translation) -> None:
    """``rect``, with which Ultralytics does not mix images."""
    if given.get("rect"):
        settings = {f"data.augment.{name}": 0.0 for name in ("mosaic", "mixup", "cutmix")}
        result.becomes("rect=true", settings, "Ultralytics uses none of these with rect. Training images stay square")
    elif run.is_news("rect", False):
        result.becomes("rect=false", {}, "the same: training images are square")


FROM_RANDOM = "from random weights"
OTHER_FAMILIES = ("yoloe", "yolo_nas", "rtdetr")
OPTIMIZERS = {
    "adamw": ("adamw", ""),
    "sgd": ("sgd", ""),
    "musgd": ("sgd", "yolofit has no MuSGD: SGD is the nearest"),
    **{
        name.lower(): ("adamw", f"yolofit has no {name}: AdamW is the nearest")
        for name in ("Adam", "Adamax", "NAdam", "RAdam", "RMSProp")
    },
}
"""yolofit's optimizer and a remark, by Ultralytics' name in lower case."""
WORDS = {"optimizer": ("auto", *OPTIMIZERS), "amp": ("true", "false", "fp16", "bf16", "fp32")}
"""Words in lower case that Ultralytics accepts."""
GROUPS: dict[tuple[str, ...], Callable[[dict[str, Any], Run, Translation], None]] = {
    ("model", "pretrained"): _model,
    ("batch", "nbs", "accumulate"): _batch,
    ("imgsz", "multi_scale"): _image_size,
    ("optimizer", "lr0", "momentum", "warmup_bias_lr", "cos_lr"): _optimizer,
    ("device", "amp"): _device,
    ("project", "name"): _folder,
    ("freeze",): _freeze,
    ("time",): _time,
    ("cache",): _cache,
    ("workers",): _workers,
    ("scale",): _scale,
    ("rect",): _rect,
}
"""Keys that belong together or change their value, and the function that translates them."""


def known_keys() -> set[str]:
    """Every argument of Ultralytics that has an answer."""
    grouped = {key for keys in GROUPS for key in keys} - {"accumulate"}
    return {*RENAMED, *LEFT_OUT, *NO_EFFECT, *grouped, "cfg"}


def _numbers(arguments: dict[str, Any], place: str) -> dict[str, Any]:
    """The arguments, with whole numbers as int.

    Raises:
        ConfigError: If a value must be a number and is not.
    """
    numbers = {*RENAMED, *WHOLE_NUMBERS, "time", "lr0", "momentum", "warmup_bias_lr", "imgsz", "scale", "multi_scale"}
    result = dict(arguments)
    for key in (numbers - {"data"}) & set(arguments):
        value = arguments[key]
        if isinstance(value, Unread) or (key == "multi_scale" and isinstance(value, bool)):
            continue
        if isinstance(value, bool) and key in RENAMED and key not in WHOLE_NUMBERS:
            value = result[key] = float(value)  # a probability; Ultralytics accepts True
        values = value if key in ("imgsz", "scale") and isinstance(value, list) and value else [value]
        if not all(_is_number(one) for one in values):
            raise ConfigError(f"{place}: {key}: {plain(value)}: not a number. Give a number.")
        if key in WHOLE_NUMBERS and not (key == "batch" and value < 1):
            if not _is_whole(value):
                raise ConfigError(f"{place}: {key}: {plain(value)}: not a whole number. Give a whole number.")
            result[key] = int(value)
    for key, least in (("nbs", 1), ("accumulate", 1), ("epochs", 1)):
        if isinstance(value := result.get(key, least), int) and value < least:
            raise ConfigError(f"{place}: {key}: {value}: out of range. Give at least {least}.")
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()
