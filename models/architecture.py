"""Which networks there are: an architecture is a dict in Ultralytics' YAML form, found by name or read from a file.

Its entries are ``backbone`` and ``head``, lists of rows [from, repeats, module, arguments], and, where the file has
them, ``scales`` (depth, width and most channels by letter), ``activation`` and ``reg_max``. Here it also gets
``scale``, the letter that counts, and ``yaml_file``, its name. `models.network` builds a network from it.

`parse_model` of `ultralytics` calls what a row names and evaluates ``activation`` as Python. An architecture may come
with a file of weights from anywhere, so `check_architecture` lets only layers and activations of known packages pass.
"""

from __future__ import annotations

import ast
import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

import torchvision  # imports torch, before ultralytics, which otherwise limits torch to one CPU thread
import ultralytics
import yaml
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import Detect, v10Detect

Architecture = dict[str, Any]
CLASS_WIDTH = "class_width"
"""yolofit's own key: inner channels of the class branches, if taken from the starting weights and not from the number
of classes."""
MOST_VALUES = 20_000
"""An architecture has some 600 values. A small file can describe billions, by references to its own parts."""
SUFFIXES = (".yaml", ".yml")
NAME = re.compile(r"(?P<family>yolov?\d+)(?P<scale>[nsmlxtbce]?)(?P<p6>6?)(?P<legacy>u?)(?P<variant>(-\w+)*)")
"""Such as ``yolo11l``, ``yolov8n-ghost-p2``; ``yolov5s6u`` is Ultralytics' older name for weights of ``yolov5s-p6``."""
TASKS = re.compile(r"-(seg|cls|pose|obb|sem|depth)\b")
END_TO_END = "has an end-to-end head, which is not supported yet: use yolo11 or yolo12"


class ArchitectureError(ValueError):
    """The network cannot be built or trained; one line: what is wrong, and what to do. Does not name the key."""


def read_architecture(network: str) -> Architecture:
    """Find an architecture.

    Args:
        network: Name of one of Ultralytics' detectors, such as ``yolo11l`` or ``yolov8n-p2``, or path of a YAML file.
            A path may carry the letter of a scale that the file's name lacks: ``boards-yolov8s.yaml`` means the file
            ``boards-yolov8.yaml`` at scale s, as with Ultralytics.

    Raises:
        ArchitectureError: If there is no such network, or it is no detector that can be trained here.
    """
    path = Path(network)
    if path.suffix in SUFFIXES:
        architecture = _read_file(path)
    elif path.suffix == "" and plain_name(network) in network_names():
        architecture = _of_ultralytics(plain_name(network))
    else:
        raise ArchitectureError(f"{network}: {_unknown(network)}")
    check_architecture(architecture)
    return architecture


def check_architecture(architecture: Architecture) -> None:
    """Refuse an architecture that could run foreign code, or that is not a trainable detector.

    Raises:
        ArchitectureError: Naming the row or key.
    """
    if not is_small(architecture):
        raise ArchitectureError(f"has more than {MOST_VALUES} values: it is built to do harm")
    rows = [*_rows(architecture, "backbone"), *_rows(architecture, "head")]
    for number, (_, _, module, arguments) in enumerate(rows):
        _check_module(number, module, arguments)
        if module == Detect.__name__ and number < len(rows) - 1:
            raise ArchitectureError(f"layer {number}: Detect: only the last layer can be a head")
    _check_activation(architecture.get("activation"))
    head = rows[-1][2]
    if architecture.get("end2end") or head == v10Detect.__name__:
        raise ArchitectureError(END_TO_END)
    if head != Detect.__name__:
        raise ArchitectureError(f"its last layer is {head}: only detectors, which end in Detect, can be trained")
    for key, default, least in (("reg_max", 16, 2), (CLASS_WIDTH, 1, 1)):
        value = architecture.get(key, default)
        if type(value) is not int or value < least:
            raise ArchitectureError(f"{key}: {value}: must be a whole number of at least {least}")


@cache
def network_names() -> tuple[str, ...]:
    """The names of Ultralytics' detectors that can be trained here: families in their order, scales ascending."""
    names = []
    for stem in _files():
        architecture = _load(_files()[stem])
        try:
            check_architecture(architecture)
        except ArchitectureError:
            continue
        family, _, variant = stem.partition("-")
        scales = architecture.get("scales") or [""]
        names += [f"{family}{scale}" + f"-{variant}" * bool(variant) for scale in scales]
    return tuple(names)


def plain_name(name: str) -> str:
    """The name of an architecture, out of a file of weights, a YAML file or an older name.

    ``yolov5su.pt`` gives ``yolov5s``, ``yolov5n6u`` gives ``yolov5n-p6``, ``yolov8n-p2.yaml`` gives ``yolov8n-p2``.
    """
    stem = re.sub(r"\.(pt|yaml|yml)$", "", re.split(r"[/\\]", name)[-1])
    match = NAME.fullmatch(stem)
    if match is None:
        return stem
    return match["family"] + match["scale"] + "-p6" * bool(match["p6"]) + match["variant"]


@cache
def _files() -> dict[str, Path]:
    """Ultralytics' YAML files of architectures by stem, without the scale: ``yolo11``, ``yolov9c``, ``yolov8-p2``."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return {path.stem: path for path in sorted(folder.glob("*/*.yaml"), key=_order)}


def _order(path: Path) -> tuple[int, str]:
    number = re.search(r"\d+", path.stem)
    return int(number[0]) if number else 0, path.stem


def _of_ultralytics(name: str) -> Architecture:
    """The architecture of one of `network_names`."""
    files = _files()
    if name in files:
        return _load(files[name]) | {"yaml_file": f"{name}.yaml"}
    match = NAME.fullmatch(name)
    assert match is not None
    architecture = _load(files[match["family"] + match["variant"]])
    return architecture | {"scale": match["scale"], "yaml_file": f"{name}.yaml"}


def _read_file(path: Path) -> Architecture:
    """The architecture of a user's file, or of Ultralytics' file of that name where the user has none."""
    stem = plain_name(path.name)
    scale = tasks.guess_model_scale(path)
    file = architecture_file(path)
    if file is None:
        if path.is_dir():
            raise ArchitectureError(f"{path}: is a folder. Give the path of a YAML file.")
        if stem in network_names():
            return _of_ultralytics(stem)
        raise ArchitectureError(f"{path}: not a file, and not an Ultralytics network. Check the path.")
    architecture = _load(file)
    scales = architecture.get("scales")
    if isinstance(scales, dict) and scales:
        scale = scale or architecture.get("scale") or next(iter(scales))
        if not isinstance(scale, str) or scale not in scales:
            raise ArchitectureError(f"{path}: scale {scale}: must be one of {', '.join(map(str, scales))}")
    return architecture | {"scale": scale, "yaml_file": path.name}


def architecture_file(path: Path) -> Path | None:
    """The file that a path means, perhaps without the letter of its scale; None if there is none."""
    without_scale = path.with_name(re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", path.name))
    return next((file for file in (path, without_scale) if file.is_file()), None)


def is_small(value: object) -> bool:
    """Whether a value, with all values in it, has at most `MOST_VALUES`; a part counts each time it is referred to."""
    waiting = [value]
    for _ in range(MOST_VALUES):
        if not waiting:
            break
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
    return not waiting


def _load(path: Path) -> Architecture:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArchitectureError(f"{path}: cannot be read ({error}): is it a text file?") from error
    except RecursionError as error:
        raise ArchitectureError(f"{path}: is nested too deeply: an architecture has lists of rows") from error
    except yaml.YAMLError as error:
        raise ArchitectureError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ArchitectureError(f"{path}: describes no network: it has no backbone and no head")
    return content


def _rows(architecture: Architecture, part: str) -> list[list[Any]]:
    rows = architecture.get(part)
    if not isinstance(rows, list) or not rows:
        raise ArchitectureError(f"{part}: must be a list of rows [from, repeats, module, arguments]")
    for row in rows:
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[2], str) or not isinstance(row[3], list):
            raise ArchitectureError(f"{part}: {row}: must be [from, repeats, module, arguments]")
    return rows


def _check_module(number: int, name: str, arguments: list[Any]) -> None:
    """Let layers of Ultralytics, `torch.nn` and `torchvision.ops` pass, but none that downloads weights."""
    module: Any
    if name.startswith("nn."):
        module = getattr(nn, name.removeprefix("nn."), None)
    elif name.startswith("torchvision.ops."):
        module = getattr(torchvision.ops, name.removeprefix("torchvision.ops."), None)
    else:
        module = getattr(tasks, name, None)
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise ArchitectureError(f"layer {number}: {name}: is no layer of ultralytics, torch.nn or torchvision.ops")
    if name == "TorchVision" and [str(argument) for argument in arguments[2:3]] != ["None"]:
        raise ArchitectureError(f"layer {number}: TorchVision: its weights would be downloaded: give None for them")


def _check_activation(activation: object) -> None:
    """Accept only ``nn.Class(plain values)``: `parse_model` evaluates the text as Python."""
    if activation is None:
        return
    try:
        call: Any = ast.parse(str(activation).strip().removeprefix("torch."), mode="eval").body
        is_module = call.func.value.id == "nn" and issubclass(getattr(nn, call.func.attr), nn.Module)
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(value)
    except (AttributeError, TypeError, ValueError, SyntaxError):
        is_module = False
    if not is_module:
        raise ArchitectureError(f"activation: {activation}: must look like nn.SiLU() or torch.nn.LeakyReLU(0.1)")


def _unknown(network: str) -> str:
    """Error text for an unknown name."""
    if Path(network).is_dir():
        return "is a folder. Give the name of a network or the path of a YAML file."
    plain = plain_name(network)
    if plain in network_names():
        return f"is a file: give the name of the network, {plain}; a file of weights belongs in model.weights"
    sizes = [name for name in network_names() if plain and name[:-1] == plain]
    if sizes:
        return f"has no size: give one of {', '.join(sizes)}"
    if re.fullmatch(r"yolov10.*|yolo26.*", plain):
        return END_TO_END
    if (task := TASKS.search(plain)) is not None:
        return f"is for another task ({task[1]}): only detectors can be trained"
    near = difflib.get_close_matches(network.lower().strip(), network_names(), 3, 0.7)
    hint = "use for example yolo11l, yolov8n-p2 or the path of a .yaml"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    return f"no detector of ultralytics {ultralytics.__version__} has this name: {hint}"
