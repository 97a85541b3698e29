"""Loads the weights of a file that fit into a network, which may have other classes, and reports them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from models.architecture import CLASS_WIDTH
from models.network import build_network, class_width, detection_head
from models.weights.saved_weights import SavedWeights, WeightsError

MIN_LOADED_SHARE = 0.25  # of the network's tensors; with less, the file is of another network


@dataclass
class Transfer:
    """Tensors and classes that `transfer_weights` loaded."""

    origin: str
    """Kind of the file, for messages."""
    loaded: list[str]
    """Tensors of the network loaded from the file; a class layer counts if any row is loaded."""
    initialized: list[str]
    """Tensors of the network that keep their initial values: the file has none of this name and shape."""
    unused: list[str]
    """Tensors of the file whose name the network does not have."""
    loaded_classes: list[str]
    """Classes whose rows are loaded."""
    initialized_classes: list[str]
    """Classes whose rows keep their initial values."""
    parts: dict[str, str]
    """Part of the network of each tensor above."""

    def table(self) -> str:
        """Format as a table with a line for each part of the network, and a line about the classes."""
        groups = (self.loaded, self.initialized, self.unused)
        columns = [Counter(self.parts[name] for name in names) for names in groups]
        lines = [f"weights: {self.origin}", f"{'tensors of':15} {'loaded':>8} {'re-initialized':>15} {'not used':>9}"]
        for part in dict.fromkeys(self.parts.values()):
            loaded, initialized, unused = (column[part] for column in columns)
            lines.append(f"{part:15} {loaded:8d} {initialized:15d} {unused:9d}")
        num_classes = len(self.loaded_classes) + len(self.initialized_classes)
        classes = f"classes: {len(self.loaded_classes)} of {num_classes} loaded"
        if self.initialized_classes:
            classes += f"; re-initialized: {_shorten(self.initialized_classes)}"
        return "\n".join([*lines, classes])


def transfer_weights(network: DetectionModel, saved: SavedWeights, class_names: list[str]) -> Transfer:
    """Load into a network the tensors of equal name and shape, and the rows of classes that both have.

    A class row is the weights and bias of one class in the last layer of each class branch. Rows are matched by name,
    ignoring case, if the file has names; else by number, if the number of classes is equal.

    Args:
        network: A network of `models.network.build_network`; keeps its initial values where nothing fits.
        saved: Weights from `read_weights`.
        class_names: Classes of the network.

    Raises:
        WeightsError: If less than half of the tensors fit, or a tensor contains NaN or infinity; the network is
            unchanged.
    """
    own = network.state_dict()
    branches = _class_branches(network)
    class_layers = {f"{layer}{kind}" for layer in branches.values() for kind in ("weight", "bias")}
    rows = _class_rows(class_names, saved)

    new = {
        name: saved.state[name]
        for name, tensor in own.items()
        if name not in class_layers and name in saved.state and saved.state[name].shape == tensor.shape
    }
    for branch, layer in branches.items():
        features = [name for name in own if name.startswith(branch) and name not in class_layers]
        if rows and all(name in new for name in features):
            new |= _copy_rows(own, saved, layer, rows)
    _check(new, own, saved)
    network.load_state_dict({**own, **new})

    known = set(rows) if class_layers <= set(new) else set()
    unused = [name for name in saved.state if name not in own]
    return Transfer(
        origin=saved.origin,
        loaded=list(new),
        initialized=[name for name in own if name not in new],
        unused=unused,
        loaded_classes=[name for c, name in enumerate(class_names) if c in known],
        initialized_classes=[name for c, name in enumerate(class_names) if c not in known],
        parts={name: _part(network, name) for name in [*own, *unused]},
    )


def with_class_width(network: DetectionModel, saved: SavedWeights) -> DetectionModel:
    """The network with inner class branches as wide as those of a file, so that their weights can be loaded.

    Their width follows from the number of classes: 80 for YOLO11n and COCO's 80 classes, 64 for up to 64. As in
    Ultralytics' ``BaseModel.load``, the file's width is taken where the maps that enter the heads agree.

    Returns:
        The network itself, or another one with new random weights, whose architecture has the width.
    """
    prefix, head = f"model.{len(network.model) - 1}", detection_head(network)
    state = {name: tensor for name, tensor in saved.state.items() if tensor.ndim == 4}
    try:
        inputs = [state[f"{prefix}.cv2.{level}.0.conv.weight"].shape[1] for level in range(head.nl)]
        last_layers = [f"{prefix}.cv3.{level}.{len(branch) - 1}.weight" for level, branch in enumerate(head.cv3)]
        (width,) = {state[name].shape[1] for name in last_layers}
    except (KeyError, ValueError):  # the file has no such head, or branches of several widths
        return network
    if width == class_width(network) or inputs != [branch[0].conv.in_channels for branch in head.cv2]:
        return network
    other = build_network({**network.yaml, CLASS_WIDTH: width}, head.nc)
    return other if class_width(other) == width else network


def _copy_rows(own: dict[str, Tensor], saved: SavedWeights, layer: str, rows: dict[int, int]) -> dict[str, Tensor]:
    """Weight and bias of a class layer with rows from the file; empty if the file's layer has another shape."""
    new = {}
    for name in (f"{layer}weight", f"{layer}bias"):
        source = saved.state.get(name)
        if source is None or source.ndim != own[name].ndim or source.shape[1:] != own[name].shape[1:]:
            return {}
        if len(source) <= max(rows.values()):
            return {}
        new[name] = own[name].clone()
        new[name][list(rows)] = source[list(rows.values())].to(own[name].dtype)
    return new


def _check(new: dict[str, Tensor], own: dict[str, Tensor], saved: SavedWeights) -> None:
    num_loaded, num_own = (sum(own[name].numel() > 1 for name in names) for names in (new, own))  # counters always fit
    if num_loaded < MIN_LOADED_SHARE * num_own:
        raise WeightsError(
            f"only {num_loaded} of the network's {num_own} tensors are in it: it is {saved.origin}, of another network"
        )
    for name, tensor in new.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"its tensor {name} holds NaN or infinity: use an earlier checkpoint")


def _class_branches(network: DetectionModel) -> dict[str, str]:
    """Prefix of the names of each class branch, and that of its last layer, whose rows are the classes."""
    head = f"model.{len(network.model) - 1}.cv3"
    return {f"{head}.{i}.": f"{head}.{i}.{len(branch) - 1}." for i, branch in enumerate(detection_head(network).cv3)}


def _class_rows(class_names: list[str], saved: SavedWeights) -> dict[int, int]:
    """Number of each class that both have: in the network, and in the file."""
    theirs = saved.class_names
    if theirs is None or theirs == [str(c) for c in range(len(theirs))]:  # how Ultralytics names classes without names
        return {c: c for c in range(len(class_names))} if saved.num_classes == len(class_names) else {}
    numbers = {_plain(name): c for c, name in reversed(list(enumerate(theirs)))}
    return {c: numbers[_plain(name)] for c, name in enumerate(class_names) if _plain(name) in numbers}


def _plain(name: str) -> str:
    return name.strip().casefold()


def _part(network: DetectionModel, name: str) -> str:
    match = re.match(r"model\.(\d+)\.(\w+)", name)
    if match is None:
        return "other"
    layer, child = int(match[1]), match[2]
    if layer < len(network.yaml["backbone"]):
        return "backbone"
    if layer < len(network.model) - 1:
        return "neck"
    return "class branches" if child == "cv3" else "box branches" if child in ("cv2", "dfl") else "other"


def _shorten(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
