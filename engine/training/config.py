"""The ``model`` section of a configuration, which module, optimizer step and planner share."""

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
from models.recompute.levels import Level


@dataclass(frozen=True)
class ModelConfig:
    """A detector and how to train it."""

    network: str = "yolo11l"
    """A detector of Ultralytics by name, such as ``yolov8n``, ``yolov8m-p2``, ``yolov9c``, ``yolo12l``, or the path of
    a YAML file in Ultralytics' form. YOLO11 n, s, m, l and x have 2.6, 9.5, 20.1, 25.4 and 57.0 million parameters."""
    weights: Path | None = None
    """File of the first weights: an Ultralytics ``.pt``, a yolofit checkpoint, a state dict or safetensors. Its classes
    may differ from those of the data set. No code in it is run. Without a file, the first weights are random."""
    precision: Precision = "fp32"
    """Precision of the forward and backward passes. bf16 and fp16 halve the activations; fp16 needs a GPU."""
    recompute: Level | Literal["auto"] = "auto"
    """What backward computes again instead of reading what forward kept. For YOLO11l at 640, ``elementwise`` needs
    under 0.4 of the memory of ``none`` and repeats no convolution; ``block`` needs about 0.25 and repeats layers.
    ``auto`` takes the fastest level that keeps ``memory.budget``: on a GPU with ``fused_kernels`` that is
    ``elementwise`` even if ``none`` fits."""
    recompute_layers: dict[int, Level] | None = field(default=None, hash=False)
    """Levels of single layers by layer number: ``{0: block, 2: block}``. Not allowed together with an `auto`."""
    fused_kernels: bool = True
    """Use Triton kernels on a GPU for colors, predicted boxes and, in layers that recompute, for BatchNorm, SiLU,
    concatenation, upsampling and max-pooling. Without Triton or a C compiler, PyTorch's kernels compute the same."""
    cuda_graphs: bool = True
    """On a GPU, capture the kernels of a micro-step once and replay them with one launch, which saves the time that
    Python takes to launch them. Keeps the gradients between steps: 0.1 GiB for YOLO11l."""
    freeze_batch_norm: bool = False
    """Normalise with the running statistics and do not change them. Accumulation is then exact up to rounding. Useful
    with pretrained weights and small micro-batches."""
    freeze_layers: int = 0
    """Number of layers at the start of the network that are not trained."""
    optimizer: OptimizerConfig = OptimizerConfig()  # noqa: RUF009  frozen
    """How the optimizer changes the weights."""
    schedule: ScheduleConfig = ScheduleConfig()  # noqa: RUF009
    """How the learning rate changes during the run."""
    ema: EmaConfig = EmaConfig()  # noqa: RUF009
    """The weight average, which is validated and saved as the result."""
    loss: LossGains = LossGains()  # noqa: RUF009
    """Weights of the loss terms."""
    nms: NmsConfig = NmsConfig()  # noqa: RUF009
    """How validation removes overlapping detections."""
    max_skipped_windows: int = 10
    """Training stops after this many windows in a row were skipped because their gradient was inf or NaN."""
