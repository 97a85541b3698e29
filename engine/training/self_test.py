"""Does a network train the same at a recompute level as at `none`? One tiny step at both tells, in seconds.

The test suite checks this for the detectors that Ultralytics names. A user's own architecture may have layers that no
test has seen, so `engine.fit` compares loss, gradients and running statistics before it trains one. A layer that
differs is found by giving each layer alone its level. An architecture that has passed is noted in the cache folder.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import ultralytics
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

import models
from data.replacing import replacing
from engine.errors import ConfigError, config_key
from models.architecture import Architecture, network_names
from models.detection.loss import DetectionLoss, LossGains
from models.network import build_network, head_strides, input_step_px, network_input, raw_predictions
from models.recompute.levels import Level, apply_recompute

NUM_CLASSES, NUM_IMAGES, BOXES_PER_IMAGE = 3, 2, 3
MOST_MARGIN = 0.4
"""Largest margin around a box, as a share of the image side. It keeps boxes large enough for random predictions to
overlap them."""
LEAST_SIDE_PX, CELLS_PER_SIDE = 64, 2
"""Two cells a side at the coarsest level: with one, BatchNorm would normalise the two values of two images."""
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Most that a tensor may differ, relative to its norm. Rounding makes at most 1.1e-14 in FP64 and 7.1e-6 in FP32 in the
families of Ultralytics, measured at their smallest scale on a CPU. FP32 has more room because fused kernels on a GPU,
where it is not measured yet, add up in another order."""
LEAST_SHARE = 1e-3
"""Smallest norm to divide by, as a share of the norm of the whole gradient. Some gradients are 0 apart from
rounding."""
MOST_NAMED = 3
"""Layers that a remedy names one by one."""


@dataclass(frozen=True)
class Difference:
    """How training at recompute levels differs from `none`."""

    where: str
    """The first top-level layer that differs, such as ``layer 4 (C2f)``, or ``the network``."""
    what: str
    """What differs, and by how much; or the exception."""
    remedy: str
    """Settings that were tested and work."""

    def __str__(self) -> str:
        """In one line."""
        return f"{self.where} does not train as at none: {self.what}. {self.remedy}"


def check_recompute(
    network: str,
    architecture: Architecture,
    level: Level,
    per_layer: Mapping[int, Level] | None,
    fused_kernels: bool,
    device: torch.device,
) -> None:
    """Refuse recompute levels that change how an untested network trains.

    Args:
        network: Name or path, as ``model.network`` has it.
        architecture: Architecture of the network.
        level: Level of all layers.
        per_layer: Other levels of single layers.
        fused_kernels: As ``model.fused_kernels`` has it.
        device: Device of the run.

    Raises:
        ConfigError: Naming the layer, the difference and what to set.
    """
    if network in network_names() or {level, *(per_layer or {}).values()} == {"none"}:
        return
    with config_key("model.network"):
        note = _note_path(architecture, level, per_layer or {}, fused_kernels, device.type)
        if _has_passed(note):
            return
        with _own_random_numbers(device):
            built = build_network(architecture, NUM_CLASSES).to(device)
    difference = self_test(built, level, per_layer, fused_kernels)
    if difference is not None:
        raise ConfigError(f"model.recompute: {level}: {network}: {difference}")
    _note_pass(note, architecture)


def self_test(
    network: DetectionModel, level: Level, per_layer: Mapping[int, Level] | None = None, fused_kernels: bool = False
) -> Difference | None:
    """Compare a training step at some recompute levels with one at `none`: loss, gradients and buffers.

    Args:
        network: On its device; it is not changed. The step is in FP64 on a CPU, and in FP32 on other devices, whose
            kernels are made for it.
        level: Level of all layers.
        per_layer: Other levels of single layers.
        fused_kernels: As for `apply_recompute`.

    Returns:
        None if they are the same up to rounding (`BOUNDS`). Random numbers outside are left as they were.
    """
    device = next(network.parameters()).device
    with _own_random_numbers(device), torch.backends.cudnn.flags(allow_tf32=False):
        try:
            comparison = _Comparison(network, fused_kernels)
        except Exception as error:
            step = f"a training step on {NUM_IMAGES} images fails even at recompute none ({_in_short(error)})"
            return Difference("the network", step, "Check that the layers of model.network fit together")
        return comparison.find(level, dict(per_layer or {}))


class _Comparison:
    """A network after one step at `none`, with which steps at other levels are compared."""

    def __init__(self, network: DetectionModel, fused_kernels: bool) -> None:
        parameter = next(network.parameters())
        self._dtype = torch.float64 if parameter.device.type == "cpu" else torch.float32
        self._network = copy.deepcopy(network).to(self._dtype).train()
        self._fused_kernels = fused_kernels
        self._step_px = input_step_px(network)
        self._expected = self._after_step({})
        gradients = [tensor for name, tensor in self._expected.items() if name.startswith("the gradient")]
        self._least_norm = LEAST_SHARE * float(torch.stack([gradient.norm() for gradient in gradients]).norm())

    def find(self, level: Level, per_layer: dict[int, Level]) -> Difference | None:
        """The first layer that differs, and what helps."""
        layers = self._network.model
        levels = dict.fromkeys(range(len(layers)), level) | per_layer
        what = self._difference(levels)
        if not what:
            return None
        alone = {index: self._difference({index: levels[index]}) for index in levels if levels[index] != "none"}
        wrong = [index for index, text in alone.items() if text]
        remedy = self._remedy(level, per_layer, wrong)
        if not wrong:
            return Difference("the network", f"{what}, but no layer alone differs", remedy)
        first = wrong[0]
        return Difference(f"layer {first} ({type(layers[first]).__name__})", alone[first], remedy)

    def _remedy(self, level: Level, per_layer: dict[int, Level], wrong: list[int]) -> str:
        """The settings nearest to those wanted that do not differ."""
        without: dict[int, Level] = {**per_layer, **dict.fromkeys(wrong, "none")}
        candidates: list[tuple[Level, dict[int, Level]]] = [("elementwise", {})]
        if 0 < len(wrong) <= MOST_NAMED:
            candidates.insert(0, (level, without))
        for base, layers in candidates:
            if not self._difference(dict.fromkeys(range(len(self._network.model)), base) | layers):
                single = ", ".join(f"{index}: {layer_level}" for index, layer_level in sorted(layers.items()))
                more = f", model.recompute_layers: {{{single}}} and data.micro_batch_size: a number" if layers else ""
                return f"Set model.recompute: {base}{more}"
        return "Set model.recompute: none"

    def _difference(self, levels: dict[int, Level]) -> str:
        """What differs most at these levels, by how much; empty if nothing does."""
        try:
            found = self._after_step(levels)
        except Exception as error:
            return _in_short(error)
        worst, most = "", BOUNDS[self._dtype]
        for name, expected in self._expected.items():
            if name not in found:
                return f"{name} is missing"
            distance = (found[name].double() - expected.double()).norm()
            least = self._least_norm if name.startswith("the gradient") else torch.finfo(self._dtype).tiny
            share = float(distance / expected.double().norm().clamp(min=least))
            if not share <= most:  # NaN as well
                worst, most = f"{name} {_in_words(found[name], expected, share)}", share
        return worst

    def _after_step(self, levels: dict[int, Level]) -> dict[str, Tensor]:
        """Loss, gradients and buffers after a step from the same weights with the same random numbers."""
        network = copy.deepcopy(self._network)
        apply_recompute(network, "none", levels, self._fused_kernels)
        device, strides = next(network.parameters()).device, head_strides(network)
        torch.manual_seed(0)
        side_px = max(LEAST_SIDE_PX, CELLS_PER_SIDE * self._step_px)
        images = torch.randint(0, 256, (NUM_IMAGES, 3, side_px, side_px), dtype=torch.uint8).to(device)
        num_boxes = NUM_IMAGES * BOXES_PER_IMAGE
        margins = torch.rand(2, num_boxes, 2) * MOST_MARGIN
        boxes_xyxy_px = (torch.cat([margins[0], 1 - margins[1]], 1) * side_px).to(device)
        index = torch.arange(num_boxes, device=device)
        predictions = raw_predictions(network(network_input(images, self._dtype)))
        sums = DetectionLoss(strides)(predictions, boxes_xyxy_px, index % NUM_CLASSES, index // BOXES_PER_IMAGE)
        loss = LossGains().total(sums, sums.normaliser)
        loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        return {
            "the loss": loss.detach(),
            **dict(network.named_buffers()),
            **{f"the gradient of {name}": gradient for name, gradient in gradients.items()},
        }


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Leave the random numbers of the run as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _in_words(found: Tensor, expected: Tensor, share: float) -> str:
    if expected.numel() == 1:
        return f"is {float(found):.6g} in place of {float(expected):.6g}"
    return f"differs by {share:.0%}" if share >= 0.01 else f"differs by {share:.0e} of its size"


def _in_short(error: Exception) -> str:
    """Class and first sentence."""
    sentence = " ".join(str(error).split()).split(". ")[0][:200]
    return f"{type(error).__name__}: {sentence}".rstrip(".: ")


def _note_path(architecture: dict[str, Any], *settings: object) -> Path:
    """Path of the record of a pass; its name is a hash of layers, settings and code versions."""
    layers = {key: value for key, value in architecture.items() if key not in ("nc", "yaml_file")}
    code = hashlib.sha256()
    for path in sorted(Path(models.__file__).parent.rglob("*.py")):  # finer than the number of a version
        code.update(path.read_bytes())
    content = [layers, *settings, code.hexdigest(), torch.__version__, ultralytics.__version__]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return models.cache_folder() / "self-test" / f"{digest[:24]}.json"


def _has_passed(note: Path) -> bool:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nobody has tested it, or the file is damaged: test it
        return False
    return isinstance(content, dict) and content.get("passed") is True


def _note_pass(note: Path, architecture: dict[str, Any]) -> None:
    """Record the pass. If the cache folder is not writable, the next run tests again."""
    content = {"architecture": architecture.get("yaml_file"), "torch": torch.__version__, "passed": True}
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as file:
            file.write(json.dumps(content).encode())
    except OSError:
        return
