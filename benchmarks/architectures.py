"""Every detector of Ultralytics, and ten architectures of our own: are loss, gradients, statistics and plan right?

    python benchmarks/architectures.py --out benchmarks/results/architectures_cpu_DATE.json

One row for each YAML file of `ultralytics/cfg/models` whose head is `Detect` (or `v10Detect`), at its smallest and at
its l scale, and for each of `tests/helpers/architectures`. A row says:

1. `criterion`: loss and gradient against the criterion of Ultralytics, in FP64, 2 images of two cells a side at the
   coarsest level, at least 64 px.
2. `levels`: gradient, loss and running statistics of each recompute level against `none`, of the same step.
3. `kept`: bytes that forward keeps for backward at each level, 16 x 640 px in fp16, on the meta device, and the part of
   them that was made in the head.
4. `plan`: peak bytes of the planned step against those of a real step on the CPU, in FP32, 2 images of 128 px (or more,
   as above).

What fails becomes an entry in the row's `errors`. The file is written after each row. A second call goes on where the
first has stopped: it keeps the rows without errors that the same code has made.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest import mock

import torch
import ultralytics
import yaml
from common import machine, random_window, step_tensors, training_step, write
from torch import Tensor, nn
from ultralytics.utils.loss import v8DetectionLoss

from data.loading.batch import Batch
from engine.memory.storages import CUDA_ALLOCATION_BYTES, StorageTracker, cuda_autocast_on_meta
from engine.planning.simulation import StepSpec, kernels_left_out, simulate_step
from engine.training.config import ModelConfig
from models.architecture import ArchitectureError
from models.detection.loss import DetectionLoss, LossGains
from models.network import build_network, detection_head, head_strides, network_input, raw_predictions
from models.recompute.levels import Level, apply_recompute, remove_recompute

ROOT = Path(__file__).resolve().parent.parent
OWN = sorted((ROOT / "tests" / "helpers" / "architectures").glob("*.yaml"))
LEVELS: tuple[Level, ...] = get_args(Level)
HEADS = ("Detect", "v10Detect")
LARGE = "l"
NUM_CLASSES, NUM_IMAGES, BOXES_PER_IMAGE = 5, 2, 6
LEAST_SIDE_PX, PLAN_SIDE_PX, CELLS_PER_SIDE = 64, 128, 2
MOST_MARGIN = 0.4
"""Of the image, on each side of a box."""
KEPT_IMAGES, KEPT_SIDE_PX = 16, 640
CODE = ("models/**/*.py", "engine/memory/*.py", "engine/planning/*.py", "engine/training/*.py", "benchmarks/arch*.py")


def names_of_ultralytics() -> list[str]:
    """The smallest and the l scale of each YAML file with a head for detection; the file itself if it has no scales."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    files = {path.stem: path for path in folder.glob("*/*.yaml")}
    names: list[str] = []
    for stem in sorted(files, key=lambda stem: (int((re.findall(r"\d+", stem) or ["0"])[0]), stem)):
        content = yaml.safe_load(files[stem].read_text(encoding="utf-8"))
        if content["head"][-1][2] not in HEADS:
            continue
        family, _, variant = stem.partition("-")
        scales = list(content.get("scales") or {}) if re.fullmatch(r"yolov?\d+", family) else []
        wanted = dict.fromkeys([*scales[:1], *(scale for scale in scales if scale == LARGE)] or [""])
        names += [f"{family}{scale}" + f"-{variant}" * bool(variant) for scale in wanted]
    return names


def own_num_classes(file: Path) -> int:
    """Classes of one of our own architectures."""
    return yaml.safe_load(file.read_text(encoding="utf-8")).get("nc", NUM_CLASSES)


def cases() -> list[tuple[str, str, int]]:
    """Name, what `build_network` takes, and classes, of each row."""
    own = [(f"own {file.stem}", str(file), own_num_classes(file)) for file in OWN]
    return [(name, name, NUM_CLASSES) for name in names_of_ultralytics()] + own


def window_for(network: nn.Module, num_classes: int, least_side_px: int = LEAST_SIDE_PX) -> Batch:
    """Noise, as small as the network allows, with boxes so large that predictions of random weights overlap them."""
    side_px = max(least_side_px, CELLS_PER_SIDE * head_strides(network)[-1])
    window = random_window(NUM_IMAGES, side_px, boxes_per_image=BOXES_PER_IMAGE)
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(2, len(window.classes), 2, generator=generator) * MOST_MARGIN
    boxes_xyxy_px = torch.cat([corners[0], 1 - corners[1]], 1) * side_px
    return replace(window, boxes_xyxy_px=boxes_xyxy_px, classes=window.classes % num_classes)


class Pass:
    """Loss, gradients and buffers after forward and backward of a copy of a network, in FP64."""

    def __init__(self, network: nn.Module, window: Batch, loss: Callable[..., Tensor], level: Level = "none") -> None:
        network = copy.deepcopy(network).double()
        apply_recompute(network, level)
        torch.manual_seed(0)  # dropout draws the same in every pass
        value = loss(network, network(network_input(window.images, torch.float64)), window)
        value.backward()
        self.loss = float(value.detach())
        self.gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        self.buffers = list(network.buffers())

    def gradient_error(self, other: Pass) -> float:
        """Norm of the difference over the norm of the other's."""
        return float((self.gradient - other.gradient).norm() / other.gradient.norm())


def our_loss(network: nn.Module, output: dict, window: Batch) -> Tensor:
    """Times the number of images, as theirs is."""
    loss = DetectionLoss(head_strides(network))
    sums = loss(raw_predictions(output), window.boxes_xyxy_px.double(), window.classes, window.image_index)
    return LossGains().total(sums, sums.normaliser) * len(window)


def their_loss(network: nn.Module, output: dict, window: Batch) -> Tensor:
    """The loss of the criterion that Ultralytics gives to its detectors."""
    gains = LossGains()
    network.args = SimpleNamespace(box=gains.box, cls=gains.cls, dfl=gains.dfl)
    side_px = window.images.shape[-1]
    x1, y1, x2, y2 = (window.boxes_xyxy_px.double() / side_px).unbind(1)
    targets = {
        "batch_idx": window.image_index.double(),
        "cls": window.classes.double().view(-1, 1),
        "bboxes": torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1),
    }
    torch.set_default_dtype(torch.float64)  # of the tensors that it makes
    try:
        loss, _ = v8DetectionLoss(network)(output, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    return loss.sum()


def measured_criterion(network: nn.Module, num_classes: int, ours: Pass) -> dict[str, float]:
    """Relative errors of loss and gradient against Ultralytics' criterion."""
    theirs = Pass(network, window_for(network, num_classes), their_loss)
    return {"loss_error": abs(ours.loss / theirs.loss - 1), "gradient_error": ours.gradient_error(theirs)}


def measured_level(network: nn.Module, num_classes: int, level: Level, plain: Pass) -> dict[str, Any]:
    """A level against `none`."""
    lean = Pass(network, window_for(network, num_classes), our_loss, level)
    return {
        "loss_equal": lean.loss == plain.loss,
        "gradient_error": lean.gradient_error(plain),
        "statistics_equal": all(map(torch.equal, lean.buffers, plain.buffers)),
    }


def kept(meta: nn.Module, level: Level) -> dict[str, float]:
    """Bytes alive between forward and backward, beside weights and images, and the part of them made in the head."""
    images = torch.empty(KEPT_IMAGES, 3, KEPT_SIDE_PX, KEPT_SIDE_PX, dtype=torch.float16, device="meta")
    apply_recompute(meta, level)
    tracker = StorageTracker("meta", CUDA_ALLOCATION_BYTES)
    tracker.track([*meta.parameters(), *meta.buffers(), images], "before")
    before_bytes = tracker.live_bytes
    head = detection_head(meta)

    def in_head(*_: Any) -> None:
        tracker.category = "head"

    hook = head.register_forward_pre_hook(in_head)
    with kernels_left_out(), tracker, cuda_autocast_on_meta(torch.float16):
        predictions = raw_predictions(meta(images))
    hook.remove()
    remove_recompute(meta)
    del predictions["feats"]  # the loss looks at their sizes only
    tracker.reset_peak()
    kept_bytes = tracker.live_bytes - before_bytes
    return {"bytes": kept_bytes, "head_share": tracker.breakdown().get("head", 0) / kept_bytes}


def planned(name: str, network: nn.Module, num_classes: int, level: Level) -> dict[str, Any]:
    """Peak of the simulated step and of a real one."""
    window = window_for(network, num_classes, PLAN_SIDE_PX)
    side_px = window.images.shape[-1]
    spec = StepSpec(ModelConfig(name, cuda_graphs=False), num_classes, side_px, BOXES_PER_IMAGE)
    predicted = sum(simulate_step(spec, NUM_IMAGES, level, accumulates=False).values())
    step = training_step(copy.deepcopy(network), NUM_IMAGES, NUM_IMAGES, "fp32", level)
    tracker = StorageTracker("cpu", CUDA_ALLOCATION_BYTES)
    tracker.track(step_tensors(step), "step")
    tracker.track([window.images, window.boxes_xyxy_px, window.classes, window.image_index], "window")
    # On a CPU a micro-batch is there already; on a GPU it is copied, and the window stays on the host.
    with mock.patch.object(Batch, "to", lambda self, device, non_blocking=False: self._map(torch.clone)), tracker:
        tracker.reset_peak()
        step.run(window)
    measured = tracker.peak_bytes - tracker.breakdown()["window"]
    return {
        "image_size": side_px,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "relative_error": predicted / measured - 1,
    }


def row(name: str, source: str, num_classes: int) -> dict[str, Any]:
    """All that is measured of one network."""
    start = time.process_time()
    found: dict[str, Any] = {"network": name, "num_classes": num_classes}
    torch.manual_seed(0)
    try:
        network = build_network(source, num_classes)
    except ArchitectureError as error:
        return found | {"refused": str(error)}
    found |= {"strides": head_strides(network), "parameters": sum(p.numel() for p in network.parameters())}
    errors: dict[str, str] = {}

    def attempt(part: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except Exception as error:
            errors[part] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return None

    plain = attempt("none", lambda: Pass(network, window_for(network, num_classes), our_loss))
    found["criterion"] = attempt("criterion", lambda: measured_criterion(network, num_classes, plain))
    found["levels"] = {
        level: attempt(level, lambda level=level: measured_level(network, num_classes, level, plain))
        for level in LEVELS[1:]
    }
    meta = copy.deepcopy(network).to("meta")
    found["kept"] = {level: attempt(f"kept, {level}", lambda level=level: kept(meta, level)) for level in LEVELS}
    found["plan"] = {
        level: attempt(f"plan, {level}", lambda level=level: planned(source, network, num_classes, level))
        for level in LEVELS
    }
    return found | {"errors": errors, "cpu_seconds": round(time.process_time() - start, 1)}


def code_digest() -> str:
    """Of the files that a row depends on."""
    paths = [*(path for pattern in CODE for path in sorted(ROOT.glob(pattern))), *OWN]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def rows_made(out: Path | None, code: str) -> dict[str, dict[str, Any]]:
    """The rows of an earlier call that hold still, by network."""
    if out is None or not out.exists():
        return {}
    content = json.loads(out.read_text(encoding="utf-8"))
    rows = content["rows"] if content.get("code") == code else []
    return {found["network"]: found for found in rows if not found.get("errors")}


def main() -> None:
    """Measure row by row, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    os.environ.setdefault("YOLOFIT_COMMIT", str(machine()["commit"]))  # before the file changes, which git may know
    code = code_digest()
    rows, wanted = rows_made(out, code), cases()
    what = "loss, gradients, statistics, bytes and plan of each architecture, on the CPU and the meta device"
    for name, source, num_classes in wanted:
        if name not in rows:
            rows[name] = row(name, source, num_classes)
            print(json.dumps(rows[name]), flush=True)
        made = [rows[each] for each, _, _ in wanted if each in rows]
        write(out, what, {"code": code, "num_wanted": len(wanted), "rows": made}, quiet=True)


if __name__ == "__main__":
    main()
