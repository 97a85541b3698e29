"""Simulate one training step on the meta device with the engine's own parts, to learn its memory without a GPU.

Tensors on the meta device have no data, so a step of the largest network takes seconds. The order of events is that of
`engine.training.step`; a test compares the simulation with the storages of a real step on a CPU.

One micro-batch is enough: a later one of the same step differs only in that gradients exist before it, so the
simulation creates them before. It also creates weights, weight average, optimizer state, the next micro-batch, and the
gradients and the copy of a micro-batch that `engine.training.cuda_graphs` keeps. It leaves out kernels that allocate
nothing (`kernels_left_out`) and the fp16 loss scaler (a few scalars).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.nn.tasks import DetectionModel

from data.loading.batch import Batch
from engine.memory.storages import CUDA_ALLOCATION_BYTES, StorageTracker, cuda_autocast_on_meta
from engine.training.accumulation import AccumulationWindow, back_propagate, gradients_of
from engine.training.batch_statistics import BatchStatistics
from engine.training.config import ModelConfig
from engine.training.ema import EmaConfig, WeightAverage
from engine.training.optim import build_optimizer, clip_gradients, step_if
from engine.training.precision import AUTOCAST_DTYPE, Precision
from models.architecture import Architecture
from models.detection.loss import DetectionLoss, LossGains, LossSums
from models.network import (
    batch_norms,
    build_network,
    freeze_batch_norms,
    freeze_layers,
    head_strides,
    input_step_px,
    network_input,
    raw_predictions,
)
from models.recompute.levels import Level, apply_recompute, remove_recompute

aten = torch.ops.aten
IN_PLACE = {aten.add_.Tensor, aten.div_.Tensor, aten.mul_.Tensor, aten.clamp_.default, aten.silu_.default}
"""Operators that only change their first argument and that the meta device runs in slow Python."""
LIKE_FIRST = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.pow.Tensor_Scalar}
LIKE_FIRST |= {aten.silu.default}
"""Operators whose result is like their first argument if the second argument is alike, or is a number."""
OPTIMIZER_STATE = {
    "adamw": {"step": "momentum", "exp_avg": "momentum", "exp_avg_sq": "variance"},
    "sgd": {"momentum_buffer": "momentum"},
}
"""Component of each tensor of an optimizer's state."""


@dataclass(frozen=True)
class StepSpec:
    """A training step without its micro-batch and recompute level."""

    model: ModelConfig
    num_classes: int = 25
    image_size: int = 640
    """Side of the largest square input in pixels."""
    boxes_per_image: int = 50
    """Ground-truth boxes of every image; take those of the worst image, so that the plan holds."""
    architecture: Architecture | None = field(default=None, hash=False)
    """Architecture of a checkpoint, or with the class width of weights; None takes that of ``model.network``."""

    @property
    def network(self) -> str:
        """Name of the network, or its architecture as JSON."""
        return self.model.network if self.architecture is None else json.dumps(self.architecture)

    def at(self, image_size: int, precision: Precision) -> StepSpec:
        """The same step with another image size and precision."""
        return replace(self, image_size=image_size, model=replace(self.model, precision=precision))


class kernels_left_out(TorchDispatchMode):
    """Leave out kernels that the meta device lacks or runs in slow Python.

    Fused optimizers and operators that change an argument in place allocate nothing. BatchNorm allocates only its
    results: a map and two FP32 numbers per channel in forward, three gradients in backward.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, or return empty results of the right shapes."""
        if func.name().startswith(("aten::_fused_", "aten::_foreach_mul_")):
            return None
        if func in IN_PLACE:
            return args[0]
        if func in LIKE_FIRST and _is_like_first(args):
            return torch.empty_like(args[0])
        if func is aten.silu_backward.grad_input and kwargs:
            return kwargs["grad_input"]
        if func is aten.native_batch_norm.default:
            x, weight, training = args[0], args[1], args[5]
            num_saved = len(weight) if training else 0
            return torch.empty_like(x), *(weight.new_empty(num_saved) for _ in range(2))
        if func is aten.native_batch_norm_backward.default:
            x, weight, needed = args[1], args[2], args[9]
            like = (x, weight, weight)
            return tuple(torch.empty_like(t) if need else None for t, need in zip(like, needed, strict=True))
        return func(*args, **(kwargs or {}))


def _is_like_first(args: tuple[Any, ...]) -> bool:
    """Whether the arguments are float tensors of the same shape and dtype, or numbers."""
    first, *others = args
    if not first.is_floating_point():
        return False
    return all(
        other.shape == first.shape and other.dtype == first.dtype if isinstance(other, Tensor) else True
        for other in others
    )


class MetaNetwork(NamedTuple):
    """A network on the meta device in training mode, its weight average and its strides."""

    network: DetectionModel
    average: WeightAverage
    strides_px: list[int]
    """Stride of each level of the head."""
    step_px: int
    """Sides of images are multiples of it."""


@cache
def network_on_meta(
    network_or_json: str, num_classes: int, num_frozen_layers: int = 0, freeze_batch_norm: bool = False
) -> MetaNetwork:
    """Build the network of a `StepSpec.network`. Callers share it and must not change it."""
    is_json = network_or_json.startswith("{")
    with torch.random.fork_rng(devices=[]):  # a plan must not change the random numbers of the run
        network = build_network(json.loads(network_or_json) if is_json else network_or_json, num_classes)
    strides_px, step_px = head_strides(network), input_step_px(network)
    network = network.to("meta")
    average = WeightAverage(network, EmaConfig())
    freeze_layers(network, num_frozen_layers)
    if freeze_batch_norm:
        freeze_batch_norms(batch_norms(network))
    return MetaNetwork(network, average, strides_px, step_px)


def simulate_step(
    spec: StepSpec,
    micro_batch_size: int,
    level: Level,
    per_layer: Mapping[int, Level] | None = None,
    *,
    accumulates: bool,
) -> dict[str, int]:
    """Simulate one optimizer step.

    Args:
        spec: The step.
        micro_batch_size: Images of a micro-batch.
        level: Recompute level of the network.
        per_layer: Other levels of single layers, as for `apply_recompute`.
        accumulates: Whether the step has several micro-batches.

    Returns:
        Bytes by component at the peak; they add up to the allocated bytes.
    """
    return _Simulation(spec, micro_batch_size, level, per_layer).run(accumulates)


class _Simulation:
    """The parts of the step, and the tracker of their storages."""

    def __init__(
        self, spec: StepSpec, micro_batch_size: int, level: Level, per_layer: Mapping[int, Level] | None
    ) -> None:
        self.spec = spec
        self.micro_batch_size = micro_batch_size
        self.tracker = StorageTracker("meta", CUDA_ALLOCATION_BYTES)
        self.network, self.ema, strides_px, _ = network_on_meta(
            spec.network, spec.num_classes, spec.model.freeze_layers, spec.model.freeze_batch_norm
        )
        self.loss = DetectionLoss(strides_px)
        self.levels = level, per_layer
        self.optimizer: Any = build_optimizer(self.network, spec.model.optimizer, batch_size=micro_batch_size)
        self.statistics = BatchStatistics(self.network)
        self.scaler = torch.amp.GradScaler(enabled=False)
        self.tracker.track([*self.network.parameters(), *self.network.buffers()], "weights")
        self.tracker.track([*self.ema.parameters(), *self.ema.buffers()], "ema")
        self._track_optimizer_state()

    def run(self, accumulates: bool) -> dict[str, int]:
        """Run the step in the order of `engine.training.step`; return the bytes by component at its peak.

        Other simulations share the network, so its changes are undone even if the step fails.
        """
        try:
            apply_recompute(self.network, *self.levels)
            self._run(accumulates)
        finally:
            self.network.zero_grad(set_to_none=True)
            remove_recompute(self.network)
        return self.tracker.breakdown()

    def _run(self, accumulates: bool) -> None:
        captures = self.spec.model.cuda_graphs
        with kernels_left_out(), self.tracker, self.tracker.phase("temporaries"):
            self.statistics.save()
            self.accumulation = AccumulationWindow(self.micro_batch_size, 1, torch.device("meta"))
            if accumulates or captures:
                self._make_gradients()
            # The next micro-batch, and the buffers that captured graphs read.
            other_micro_batches = [self._micro_batch() for _ in range(accumulates + captures)]
            self.tracker.reset_peak()
            self._forward_backward()
            del other_micro_batches
            self._update()

    def _make_gradients(self) -> None:
        """Create the gradients of an earlier micro-batch or, with captured graphs, of an earlier step."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)

    def _forward_backward(self) -> None:
        micro_batch = self._micro_batch()  # stays alive through backward, as in the real step
        sums = self._loss_sums(micro_batch)
        with self.tracker.phase("activation_gradients"):
            totals = back_propagate(sums, LossGains(), self.accumulation.scale, self.scaler)
            self.accumulation.add(totals)
        self.tracker.track(gradients_of(self.optimizer), "gradients")

    def _loss_sums(self, micro_batch: Batch) -> LossSums:
        autocast = self._autocast()
        with autocast:
            with self.tracker.phase("inputs"):
                images = network_input(micro_batch.images, AUTOCAST_DTYPE[self.spec.model.precision])
            with self.tracker.phase("activations"):
                # As in `step.py`, only the network holds a reference to its input.
                inputs = [images]
                del images
                predictions = raw_predictions(self.network(inputs.pop()))
            if isinstance(autocast, cuda_autocast_on_meta):
                self.tracker.track(autocast.weight_casts, "autocast_copies")
        with self.tracker.phase("loss"):
            sums: LossSums = self.loss(
                predictions, micro_batch.boxes_xyxy_px, micro_batch.classes, micro_batch.image_index
            )
        return sums

    def _autocast(self) -> AbstractContextManager[object]:
        if self.spec.model.precision == "fp32":
            return nullcontext()
        return cuda_autocast_on_meta(AUTOCAST_DTYPE[self.spec.model.precision])

    def _update(self) -> None:
        self.accumulation.normalise(self.optimizer, self.scaler)
        grad_norm = clip_gradients(gradients_of(self.optimizer), self.spec.model.optimizer.max_grad_norm)
        finite = grad_norm.isfinite() & self.statistics.are_finite()
        step_if(finite, self.optimizer, self.optimizer.step)
        self.statistics.restore_unless(finite)
        self.ema.update(self.network, 1, finite)

    def _micro_batch(self) -> Batch:
        size, num_boxes = self.spec.image_size, self.micro_batch_size * self.spec.boxes_per_image
        with self.tracker.phase("inputs"):
            return Batch(
                images=torch.empty(self.micro_batch_size, 3, size, size, dtype=torch.uint8, device="meta"),
                boxes_xyxy_px=torch.empty(num_boxes, 4, device="meta"),
                classes=torch.empty(num_boxes, dtype=torch.int64, device="meta"),
                image_index=torch.empty(num_boxes, dtype=torch.int64, device="meta"),
                names=[],
            )

    def _track_optimizer_state(self) -> None:
        self.optimizer._need_device_dtype_check_for_fused = False  # the check refuses the meta device
        components = OPTIMIZER_STATE[self.spec.model.optimizer.name]
        for state in self.optimizer.state.values():
            for name, tensor in state.items():
                self.tracker.track([tensor], components[name])
