"""Reads weights of any origin and names them as our networks do.

The readable files are Ultralytics' ``.pt`` files (pickles of whole models, from training or stripped), yolofit's
checkpoints, state dicts and safetensors. If a file has averaged weights, these are read. No code from a file runs: see
`models.weights.restricted_pickle`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.architecture import NAME, Architecture, is_small, plain_name
from models.weights.restricted_pickle import Inert, PickledTensor, RestrictedPickleError, SavedFile

MAX_MODULES = 20_000  # modules of a pickled model; YOLO11x has about 1,000
PREFIXES = ("ema.network.", "ema.", "network.", "module.", "model.", "")  # averaged weights first
STRIDE_PX = 32  # Ultralytics rounds the image size up to a multiple of this, or of a larger stride
DOWNLOADS = "https://github.com/ultralytics/assets/releases"
"""Where Ultralytics publishes pretrained weights."""
PUBLISHED = re.compile(r"(yolov5[nsmlx]6?u|yolov8[nsmlx]|yolov9[tsmce]|yolo1[12][nsmlx])\.pt")
EXPORTED = (".onnx", ".torchscript", ".engine")
CLASS_BIAS = re.compile(r"model\.(\d+)\.cv3\.\d+\.\d+\.bias")
"""Bias of the last layer of a class branch; other layers of the branch have none."""
SAFETENSORS_KEY = "yolofit"  # key in the metadata; its value describes the network as JSON


class WeightsError(ValueError):
    """The file cannot be used. The message is one line without the file and the key: what is wrong and what to do."""


@dataclass
class SavedWeights:
    """Weights of a file and what the file says about their network."""

    origin: str
    """Kind of the file, for messages: "an Ultralytics model"."""
    state: dict[str, Tensor]
    """Tensors by name. Weights of YOLO11 have the names of the networks of `models.network`."""
    network: str | None = None
    """Name of the network, such as ``yolo11l``, if the file has it."""
    class_names: list[str] | None = None
    """Class names, if the file has them."""
    image_size: int | None = None
    """Side of the input in training, in pixels, if the file has it."""
    architecture: Architecture | None = None
    """Architecture of the network, if the file has it. It is not checked."""

    @property
    def num_classes(self) -> int | None:
        """Rows of the last layer of each class branch; None if there is no detection head, or if they differ."""
        matches = [(CLASS_BIAS.fullmatch(name), tensor) for name, tensor in self.state.items() if tensor.ndim]
        rows = [(int(match[1]), len(tensor)) for match, tensor in matches if match]
        counts = {count for layer, count in rows if layer == max(rows)[0]}  # the head is the last layer
        return counts.pop() if len(counts) == 1 else None


def read_weights(path: Path) -> SavedWeights:
    """Read a file of any kind named above onto the CPU, without running code from it.

    Raises:
        WeightsError: If the file does not exist, is damaged or is of another kind.
    """
    path = Path(path)
    if path.suffix in EXPORTED and path.exists():
        raise WeightsError(f"an exported {path.suffix} holds no weights to use here: give the file it was made from")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with SavedFile(path) as file:
            return _find_weights(file)
    except FileNotFoundError as error:
        raise WeightsError(f"no such file: nothing is downloaded: {_where_from(path)}") from error
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror or error}): is the path right?") from error
    except (RestrictedPickleError, SafetensorError) as error:
        raise WeightsError(str(error)) from error


def _where_from(path: Path) -> str:
    """Say where to get a file that does not exist."""
    name = path.name if PUBLISHED.fullmatch(path.name) else "yolo11l.pt and the like"
    return f"is the path right? {name} can be had from {DOWNLOADS}"


def _read_safetensors(path: Path) -> SavedWeights:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is not a dict
        metadata = file.metadata() or {}
    try:
        about = json.loads(metadata.get(SAFETENSORS_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise WeightsError(f"its metadata is damaged: {error}") from error
    return _described("safetensors", state, about if isinstance(about, dict) else {})


def _find_weights(file: SavedFile) -> SavedWeights:
    content = file.content
    if isinstance(content, Inert):  # a pickled model and nothing else
        content = {"model": content}
    if not isinstance(content, dict):
        raise WeightsError("holds neither a model nor a state dict")
    if isinstance(content.get("yolofit"), dict):
        state = _read_tensors(file, content.get("state_dict"))
        return _described("a yolofit checkpoint", state, content["yolofit"])
    for key in ("ema", "model"):
        if isinstance(content.get(key), Inert):
            return _pickled_model(file, content[key], content.get("train_args"))
    nested = (content.get(key) for key in ("ema_state_dict", "ema", "state_dict", "model_state_dict", "model"))
    for candidate in (*nested, content):
        state = _read_tensors(file, candidate)
        if state:
            return SavedWeights("a state dict", _strip_prefix(state), class_names=_names(content.get("names")))
    raise WeightsError("holds no weights: neither a model nor a state dict is in it")


def _pickled_model(file: SavedFile, model: Inert, train_args: object) -> SavedWeights:
    yaml = model.attributes.get("yaml")
    sizes = [_image_size(args) for args in (model.attributes.get("args"), train_args)]
    return SavedWeights(
        "an Ultralytics model",
        _strip_prefix({name: file.tensor(tensor) for name, tensor in _walk(model).items()}),
        network=_network_name(yaml) if isinstance(yaml, dict) else None,
        architecture=_architecture(yaml),
        class_names=_names(model.attributes.get("names")),
        image_size=next((size for size in sizes if size is not None), None),
    )


def _image_size(args: object) -> int | None:
    """Image size of a training with these arguments, which are a dict, or an object in files of unfinished runs."""
    if isinstance(args, Inert):
        args = args.attributes
    found = args.get("imgsz") if isinstance(args, dict) else None
    listed = found if isinstance(found, list | tuple) else [found]
    sides = [side for side in listed if type(side) is int and side > 0]
    if not sides or len(sides) < len(listed):
        return None
    return -(-max(sides) // STRIDE_PX) * STRIDE_PX


def _walk(model: Inert) -> dict[str, PickledTensor]:
    """Parameters and persistent buffers of a pickled ``nn.Module`` by their names in its state dict.

    Raises:
        WeightsError: If the model has more than `MAX_MODULES` modules, or contains itself.
    """
    found: dict[str, PickledTensor] = {}
    open_modules, num_modules = [("", model)], 0
    while open_modules:
        prefix, module = open_modules.pop()
        num_modules += 1
        if num_modules > MAX_MODULES:
            raise WeightsError(f"its model has more than {MAX_MODULES} layers: it is built to do harm")
        passing = _set_elements(module.attributes.get("_non_persistent_buffers_set"))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _members(module, kind):
                if isinstance(tensor, PickledTensor) and not (kind == "_buffers" and name in passing):
                    found[f"{prefix}{name}"] = tensor
        for name, child in _members(module, "_modules"):
            if isinstance(child, Inert):
                open_modules.append((f"{prefix}{name}.", child))
    return found


def _members(module: Inert, kind: str) -> list[tuple[str, object]]:
    members = module.attributes.get(kind)
    if not isinstance(members, dict):
        return []
    return [(name, value) for name, value in members.items() if isinstance(name, str)]


def _set_elements(pickled: object) -> set[str]:
    """Strings in a pickled set."""
    if isinstance(pickled, Inert) and isinstance(pickled.args, tuple) and pickled.args:
        pickled = pickled.args[0]
    return {name for name in pickled if isinstance(name, str)} if isinstance(pickled, list | set) else set()


def _read_tensors(file: SavedFile, mapping: object) -> dict[str, Tensor]:
    """Read the tensors of a dict; if it has averaged weights of yolofit, read only those."""
    if not isinstance(mapping, dict):
        return {}
    found = {name: tensor for name, tensor in mapping.items() if isinstance(tensor, PickledTensor)}
    averaged = {name: tensor for name, tensor in found.items() if str(name).startswith(PREFIXES[0])}
    return {str(name): file.tensor(tensor) for name, tensor in (averaged or found).items()}


def _strip_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to FP32 and remove what comes before ``model.0.``, and tensors without this prefix."""
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for prefix in PREFIXES:
        if any(name.startswith(f"{prefix}model.0.") for name in state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return state


def _described(origin: str, state: dict[str, Tensor], about: dict[str, object]) -> SavedWeights:
    """Weights with the description that yolofit wrote into their file, except values of the wrong type."""
    network, image_size, architecture = (about.get(key) for key in ("network", "image_size", "architecture"))
    return SavedWeights(
        origin,
        _strip_prefix(state),
        network=network if isinstance(network, str) else None,
        class_names=_names(about.get("class_names")),
        image_size=image_size if type(image_size) is int else None,
        architecture=_architecture(architecture),
    )


def _names(names: object) -> list[str] | None:
    """Class names in order of their numbers, from a list or from a dict by number; None for other values."""
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            return None
        names = [names[number] for number in range(len(names))]
    if isinstance(names, list) and names and all(isinstance(name, str | int) for name in names):
        return [str(name) for name in names]
    return None


def _network_name(yaml: dict[str, object]) -> str | None:
    """Name such as ``yolo11n`` from a description of Ultralytics, whose file is yolo11n.yaml or yolo11.yaml."""
    file, scale = yaml.get("yaml_file"), yaml.get("scale")
    if not isinstance(file, str):
        return None
    name = plain_name(file)
    match = NAME.fullmatch(name)
    if match is None or match["scale"] or not isinstance(scale, str):
        return name
    return f"{match['family']}{scale}{match['variant']}"


def _architecture(value: object) -> Architecture | None:
    """An architecture in plain values; None for other values, and for far more than an architecture has."""
    return plain_values(value) if isinstance(value, dict) and is_small(value) else None


def plain_values(value: Any, depth: int = 8) -> Any:
    """Dicts, lists, text and numbers as they are; None in place of everything else, such as a pickled object."""
    if depth and isinstance(value, dict):
        return {key: plain_values(item, depth - 1) for key, item in value.items() if isinstance(key, str)}
    if depth and isinstance(value, list | tuple):
        return [plain_values(item, depth - 1) for item in value]
    return value if isinstance(value, str | int | float) else None
