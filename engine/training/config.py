"""The ``model`` section of a configuration, as module, optimizer step and planner share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.training.ema import EmaConfig
from engine.training.optim import OptimizerConfig
from engine.training.precision import Precision
from engine.training.schedule import ScheduleConfig
from models.detection.loss import LossGains
from models.detection.postprocess import NmsConfig
from models.network import NetworkName
from models.recompute.levels import Level


@dataclass(frozen=True)
class ModelConfig:
    """A YOLO11 detector and the way it is trained."""

    network: NetworkName = "yolo11l"
    """Which YOLO11; n, s, m, l and x have 2.6, 9.5, 20.1, 25.4 and 57.0 million parameters."""
    weights: Path | None = None
    """A file to start from: an Ultralytics ``.pt``, a yolofit checkpoint, a state dict or safetensors; its classes may
    differ. Nothing in it is run. Without one, weights are random."""
    precision: Precision = "fp32"
    """Of forward and backward passes. bf16 and fp16 halve the activations; fp16 needs a GPU."""
    recompute: Level | Literal["auto"] = "auto"
    """What backward computes again instead of keeping. ``elementwise`` brings the memory of a step of YOLO11l at 640 to
    under 0.4 without repeating a convolution, ``block`` to some 0.25 by repeating layers. ``auto``: the fastest with
    which ``memory.budget`` is kept; on a GPU with ``fused_kernels`` that is ``elementwise`` even where there is room
    for ``none``."""
    recompute_layers: dict[int, Level] | None = field(default=None, hash=False)
    """Other levels for single layers, by number: ``{0: block, 2: block}``. Not with any `auto`."""
    fused_kernels: bool = True
    """Take Triton kernels on a GPU, for colors, predicted boxes and, in layers that recompute, for BatchNorm, SiLU,
    concatenation, upsampling and max-pooling. Without Triton or a C compiler, PyTorch's own kernels do the same."""
    cuda_graphs: bool = True
    """On a GPU, capture the kernels of a micro-step once and replay them with one launch, which saves the time that
    Python takes to launch them. Keeps the gradients between steps: 0.1 GiB for YOLO11l."""
    freeze_batch_norm: bool = False
    """Normalise with the running statistics and leave them as they are. Makes accumulation exact to the last bit of
    rounding; sensible with pretrained weights and small micro-batches."""
    freeze_layers: int = 0
    """How many of the network's first layers do not train."""
    optimizer: OptimizerConfig = OptimizerConfig()  # noqa: RUF009  frozen
    """How the weights move."""
    schedule: ScheduleConfig = ScheduleConfig()  # noqa: RUF009
    """How the learning rate changes."""
    ema: EmaConfig = EmaConfig()  # noqa: RUF009
    """Average of the weights, which is validated and saved as the result."""
    loss: LossGains = LossGains()  # noqa: RUF009
    """Weights of the loss terms."""
    nms: NmsConfig = NmsConfig()  # noqa: RUF009
    """How overlapping detections are reduced in validation."""
    max_skipped_windows: int = 10
    """Windows in a row with an inf or NaN gradient after which training stops."""
