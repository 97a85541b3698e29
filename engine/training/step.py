"""One optimizer step, from top to bottom: `TrainingStep.run`.

The step takes a whole window, the images of one effective batch, which stays in host memory; micro-batches go to the
device one by one. So the number of optimizer steps, the schedule and the average cannot depend on the micro-batch.

No line between two optimizer steps waits for the device. Whether a gradient was finite decides on the device, and
the host reads the outcome of a step only after it has queued the next window's work: see `settle`.

Where memory runs out, a window is done again with less on the device (`engine.training.out_of_memory`), up to its last
backward pass; from there on, it is carried through (`engine.training.carry_through`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from data.loading.batch import Batch
from engine.errors import TrainingError
from engine.training.accumulation import AccumulationWindow, back_propagate, fill_missing_gradients, gradients_of
from engine.training.batch_statistics import BatchStatistics
from engine.training.carry_through import carry_through
from engine.training.color import colored
from engine.training.config import ModelConfig
from engine.training.copy_ahead import copied_ahead
from engine.training.cuda_graphs import RecordedMicroStep, can_record
from engine.training.ema import WeightAverage
from engine.training.nonfinite import NonFiniteGuard
from engine.training.optim import clip_gradients, step_if
from engine.training.out_of_memory import MemorySettings, free_memory, retry
from engine.training.precision import AUTOCAST_DTYPE, autocast
from engine.training.ranks import Ranks, is_parallel
from engine.training.schedule import Schedule
from models.detection.loss import DetectionLoss, LossSums
from models.network import head_strides, network_input, raw_predictions

Result = TypeVar("Result")
MAX_FAILURES = 10
"""How often memory may run out in a step, after its last backward pass: more often than settings can be lowered."""


class StepOutcome(NamedTuple):
    """What one optimizer step did, on the host."""

    box_loss: float
    cls_loss: float
    dfl_loss: float
    grad_norm: float
    """L2 norm of the window's gradient before clipping."""
    finite: bool
    """False if the gradient or a running statistic was inf or NaN and the window was skipped."""


@dataclass(frozen=True)
class _Readback:
    """An outcome on its way to the host."""

    values: Tensor
    copied: torch.cuda.Event | None
    names: list[str]


class TrainingStep:
    """The parts of one optimizer step, and the count of the steps taken."""

    def __init__(
        self,
        *,
        network: nn.Module,
        loss: DetectionLoss,
        config: ModelConfig,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        ema: WeightAverage,
        scaler: torch.amp.GradScaler,
        guard: NonFiniteGuard,
        memory: MemorySettings,
        take_step: Callable[[], object] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            network: In training mode, on its device.
            loss: Gives un-normalised sums.
            config: Weights of the loss terms, base rates, clipping, precision, and whether to record micro-steps.
            optimizer: Over the network's parameters.
            schedule: Learning rate and momentum by steps taken.
            ema: Average of the weights.
            scaler: fp16 loss scaler, disabled in the other precisions.
            guard: Told about every outcome.
            memory: Micro-batch and recompute level, lowered when memory runs out.
            take_step: Called in place of ``optimizer.step``, for a loop that counts.
        """
        self.network = network
        self.loss = loss
        self.config = config
        self.optimizer = optimizer
        self.schedule = schedule
        self.ema = ema
        self.scaler = scaler
        self.guard = guard
        self.memory = memory
        self.take_step = take_step or optimizer.step
        self.num_steps_taken = 0
        self.batch_statistics = BatchStatistics(network)
        self.ranks = Ranks()
        self._pending: _Readback | None = None
        self._asked_because: list[str] = []
        parameter = next(network.parameters())
        self.device = parameter.device
        records = config.cuda_graphs and can_record(network)
        self._buffers = [(module._buffers, name) for module in network.modules() for name in module._buffers]
        parameters = list(network.parameters())
        self.micro_step = RecordedMicroStep(self._forward_backward, parameters, records, self._tensors_in_place)
        scaler.scale(torch.zeros((), device=self.device))  # makes its state: in a step, memory may run out half-way
        self._coarsest_px = max(head_strides(network))
        self._input_dtype = parameter.dtype if config.precision == "fp32" else AUTOCAST_DTYPE[config.precision]

    def run(self, window: Batch) -> StepOutcome | None:
        """Train on one window and return the outcome of the window before it, if there was one.

        Raises:
            TrainingError: If memory does not suffice even for the lowest settings.
        """
        accumulation = retry(lambda: self._accumulate(window), self._recover, self._undo, self.ranks.any)
        previous = self.settle()
        rates = self.config.optimizer
        self.schedule.apply(self.optimizer, self.num_steps_taken, rates.lr, rates.momentum)
        losses = self._through(lambda: accumulation.normalise(self.optimizer, self.scaler))
        grad_norm, finite = self._through(self._clip_and_judge)
        self._through(lambda: step_if(finite, self.optimizer, self.take_step))
        self._through(self.scaler.update)
        self._through(lambda: self._follow(finite))
        self._pending = self._through(lambda: self._read_back(losses, grad_norm, finite, window.names))
        self._lower_where_asked()
        return previous

    def _accumulate(self, window: Batch) -> AccumulationWindow:
        """Forward and backward passes of all micro-batches of a window."""
        micro_batches = window.split(self.memory.micro_batch_size)
        self._check_sizes(micro_batches)
        self.batch_statistics.save()
        accumulation = AccumulationWindow(len(window), len(window.classes), self.device)
        for micro_batch in copied_ahead(micro_batches, self.device):
            totals = self.micro_step.run(
                colored(micro_batch, self.config.fused_kernels), accumulation.scale, self.memory.settings
            )
            accumulation.add(totals)
        if is_parallel():
            fill_missing_gradients(self.optimizer)
        return accumulation

    def _check_sizes(self, micro_batches: list[Batch]) -> None:
        """Refuse a micro-batch of which BatchNorm would see one value per channel, which have no variance."""
        if not self.batch_statistics.needs_several_values:
            return
        for micro_batch in micro_batches:
            num_images, _, height_px, width_px = micro_batch.images.shape
            if num_images * (height_px // self._coarsest_px) * (width_px // self._coarsest_px) == 1:
                raise TrainingError(
                    f"data.image_size: {height_px} x {width_px} px: a micro-batch of a single image leaves BatchNorm "
                    "one value per channel, which has no variance: use larger images, or set model.freeze_batch_norm"
                )

    def _undo(self) -> None:
        """Drop what a window that is not used has left behind."""
        self.optimizer.zero_grad(set_to_none=True)
        self.batch_statistics.restore()

    def _clip_and_judge(self) -> tuple[Tensor, Tensor]:
        """Clip the gradient; its norm before, and whether the window may be used: on all ranks or on none."""
        self.batch_statistics.average_over_ranks()
        grad_norm = clip_gradients(gradients_of(self.optimizer), self.config.optimizer.max_grad_norm)
        return grad_norm, grad_norm.isfinite() & self.batch_statistics.are_finite()

    def _follow(self, finite: Tensor) -> None:
        """What follows the weights: statistics, average, gradients."""
        self.batch_statistics.restore_unless(finite)
        self.ema.update(self.network, self.num_steps_taken + 1, finite)
        self.optimizer.zero_grad(set_to_none=not self.micro_step.keeps_gradients)

    def _through(self, work: Callable[[], Result]) -> Result:
        return carry_through(work, self._make_room)

    def _make_room(self, cause: str) -> None:
        """Give back what the rest of the step can do without; the next one needs less."""
        self.micro_step.release()
        self.memory.hooks.on_recovery(cause)
        self.ask_for_less(cause)
        if len(self._asked_because) > MAX_FAILURES:
            raise TrainingError(f"{cause}: a step fails {MAX_FAILURES} times over: {self.memory.hooks.what_fits()}")

    def ask_for_less(self, cause: str) -> None:
        """Have all ranks lower their settings at the end of the step that is under way, or of the next one."""
        self._asked_because.append(cause)

    def _lower_where_asked(self) -> None:
        while self.ranks.any(bool(self._asked_because)):
            causes = self.ranks.gather(self._asked_because.pop(0) if self._asked_because else "")
            self._lower(next(filter(None, causes)))
            free_memory()  # what the allocator keeps for larger micro-batches

    def _recover(self, cause: str) -> None:
        self.memory.hooks.on_recovery(self._lower(cause))

    def _lower(self, cause: str) -> str:
        self.micro_step.release()
        return self.memory.lower(cause, self.num_steps_taken + (self._pending is not None))

    def _forward_backward(self, micro_batch: Batch, scale: Tensor) -> Tensor:
        """Forward pass, loss and backward pass of one micro-batch on the device; returns its totals.

        All that it changes stays at its place in memory (gradients, running statistics), so that its kernels can be
        recorded once and launched again: see `engine.training.cuda_graphs`.
        """
        return back_propagate(self.loss_sums(micro_batch), self.config.loss, scale, self.scaler)

    def _tensors_in_place(self) -> Iterator[Tensor]:
        """What a micro-step reads or changes in place beside parameters and gradients."""
        for buffers, name in self._buffers:  # many times as fast as `Module.buffers`
            if (buffer := buffers[name]) is not None:
                yield buffer
        if self.scaler.is_enabled():
            scale: Any = self.scaler._scale  # there since the beginning
            yield scale

    def loss_sums(self, micro_batch: Batch) -> LossSums:
        """Forward pass and un-normalised loss of one micro-batch on the device, its colors changed already."""
        how = self._input_dtype, self.config.fused_kernels
        with autocast(self.config.precision, self.device):  # no name keeps the network's input
            predictions = raw_predictions(self.network(network_input(micro_batch.images, *how)))
        targets = micro_batch.boxes_xyxy_px, micro_batch.classes, micro_batch.image_index
        sums: LossSums = self.loss(predictions, *targets)
        return sums

    def settle(self) -> StepOutcome | None:
        """Read the outcome of the last window, if it has not been read, and count its step.

        Called when the next window's forward and backward passes are already queued, so the device stays busy.

        Raises:
            TrainingError: If too many windows in a row were skipped.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        if pending.copied is not None:
            pending.copied.synchronize()
        *values, finite = pending.values.tolist()
        outcome = StepOutcome._make([*values, bool(finite)])
        self.num_steps_taken += outcome.finite
        shares = [pending.names] if outcome.finite else self.ranks.gather(pending.names)
        try:
            self.guard.record(outcome.finite, [name for names in shares for name in names])
        except TrainingError:
            self._undo()  # of the window that has begun, and of the look for the origin
            raise
        return outcome

    def _read_back(self, losses: Tensor, grad_norm: Tensor, finite: Tensor, names: list[str]) -> _Readback:
        values = torch.cat([losses, torch.stack([grad_norm, finite.to(grad_norm)]).to(losses)])
        values = values.to("cpu", non_blocking=True)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        return _Readback(values, copied, names)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and optimizer, as plain values; settles first."""
        self.settle()
        return {
            "num_steps_taken": self.num_steps_taken,
            **self.guard.state_dict(),
            "scaler": self.scaler.state_dict(),
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.num_steps_taken = state["num_steps_taken"]
        self.guard.load_state_dict(state)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if "memory" in state:
            self.memory.load_state_dict(state["memory"])
