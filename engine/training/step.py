"""One optimizer step, from top to bottom: read `TrainingStep.run`.

A step trains on one window, the images of one effective batch. The window stays in host memory; its micro-batches go to
the device one by one. Therefore the number of optimizer steps, the schedule and the weight average do not depend on the
micro-batch.

Nothing between two optimizer steps waits for the device. The device itself decides whether a gradient was finite. The
host reads the outcome of a step after it has queued the next window's passes: see `TrainingStep.settle`.

If memory runs out in the forward or backward passes, the window is repeated with lower settings
(`engine.training.out_of_memory`). If memory runs out later, the step resumes where it failed
(`engine.training.carry_through`).
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
from engine.training.cuda_graphs import CapturedMicroStep, can_capture
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
"""Most failures in a step after its last backward pass. More than the number of times that settings can be lowered."""


class StepOutcome(NamedTuple):
    """The result of one optimizer step, on the host."""

    box_loss: float
    cls_loss: float
    dfl_loss: float
    grad_norm: float
    """L2 norm of the window's gradient before clipping."""
    finite: bool
    """False if the window was skipped because the gradient or a running statistic was inf or NaN."""


@dataclass(frozen=True)
class _Readback:
    """An outcome that is being copied to the host."""

    values: Tensor
    copied: torch.cuda.Event | None
    """Event that the device reaches after the copy; None on a CPU."""
    names: list[str]


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingStep:
    """The parts of an optimizer step, and the number of steps taken."""

    network: nn.Module
    """In training mode, on its device."""
    loss: DetectionLoss
    """Returns sums that are not normalised."""
    config: ModelConfig
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: WeightAverage
    scaler: torch.amp.GradScaler
    """fp16 loss scaler, disabled in the other precisions."""
    guard: NonFiniteGuard
    memory: MemorySettings
    take_step: Callable[[], object]
    """``optimizer.step``, or Lightning's wrapper, which also counts steps."""

    def __post_init__(self) -> None:
        """Create the state of the step; all ranks must do so at the same point."""
        self.num_steps_taken = 0
        self.batch_statistics = BatchStatistics(self.network)
        self.ranks = Ranks()
        self._pending: _Readback | None = None
        self._reasons_to_lower: list[str] = []
        parameters = list(self.network.parameters())
        self.device = parameters[0].device
        captures = self.config.cuda_graphs and can_capture(self.network)
        self._buffers = [(module._buffers, name) for module in self.network.modules() for name in module._buffers]
        self.micro_step = CapturedMicroStep(self._forward_backward, parameters, captures, self._tensors_in_place)
        self.scaler.scale(torch.zeros((), device=self.device))  # allocates its state before memory can run out
        self._coarsest_px = max(head_strides(self.network))
        is_fp32 = self.config.precision == "fp32"
        self._input_dtype = parameters[0].dtype if is_fp32 else AUTOCAST_DTYPE[self.config.precision]

    def run(self, window: Batch) -> StepOutcome | None:
        """Train on one window and return the outcome of the previous window, if there was one.

        Raises:
            TrainingError: If memory does not suffice even for the lowest settings, or too many windows were skipped.
        """
        accumulation = retry(
            lambda: self._accumulate(window), lower=self._recover, undo=self._undo, agree=self.ranks.any
        )
        previous_outcome = self.settle()  # the device is busy with the passes that were just queued
        rates = self.config.optimizer
        self.schedule.apply(self.optimizer, self.num_steps_taken, rates.lr, rates.momentum)
        # From here on tensors change in place, so the step is never repeated, only resumed.
        losses = self._carry_through(lambda: accumulation.normalise(self.optimizer, self.scaler))
        grad_norm, finite = self._carry_through(self._clip_and_check)
        self._carry_through(lambda: step_if(finite, self.optimizer, self.take_step))
        self._carry_through(self.scaler.update)
        self._carry_through(lambda: self._finish_window(finite))
        self._pending = self._carry_through(lambda: self._read_back(losses, grad_norm, finite, window.names))
        self._lower_if_asked()
        return previous_outcome

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
        """Refuse a micro-batch with one value per channel at the coarsest stride: BatchNorm needs a variance."""
        if not self.batch_statistics.needs_several_values:
            return
        for micro_batch in micro_batches:
            num_images, _, height_px, width_px = micro_batch.images.shape
            if num_images * (height_px // self._coarsest_px) * (width_px // self._coarsest_px) == 1:
                raise TrainingError(
                    f"data.image_size: {height_px} x {width_px} px: a micro-batch of a single image leaves BatchNorm "
                    "one value per channel, which has no variance. Use larger images, or set model.freeze_batch_norm."
                )

    def _forward_backward(self, micro_batch: Batch, scale: Tensor) -> Tensor:
        """Forward pass, loss and backward pass of one micro-batch on the device; returns its totals.

        Gradients and running statistics keep their addresses, so that `engine.training.cuda_graphs` can capture this.
        """
        return back_propagate(self.loss_sums(micro_batch), self.config.loss, scale, self.scaler)

    def loss_sums(self, micro_batch: Batch) -> LossSums:
        """Forward pass and sums of the loss terms of one micro-batch on the device, after its color changes."""
        how = self._input_dtype, self.config.fused_kernels
        with autocast(self.config.precision, self.device):
            # Nest the calls, so that the input is freed as early as possible.
            predictions = raw_predictions(self.network(network_input(micro_batch.images, *how)))
        targets = micro_batch.boxes_xyxy_px, micro_batch.classes, micro_batch.image_index
        sums: LossSums = self.loss(predictions, *targets)
        return sums

    def _tensors_in_place(self) -> Iterator[Tensor]:
        """The tensors that a micro-step reads or changes in place, except parameters and gradients."""
        for buffers, name in self._buffers:  # much faster than `Module.buffers`
            if (buffer := buffers[name]) is not None:
                yield buffer
        if self.scaler.is_enabled():
            scale: Any = self.scaler._scale
            yield scale

    def _clip_and_check(self) -> tuple[Tensor, Tensor]:
        """Clip the gradient; returns its norm before clipping, and whether the window is finite on all ranks."""
        self.batch_statistics.average_over_ranks()
        grad_norm = clip_gradients(gradients_of(self.optimizer), self.config.optimizer.max_grad_norm)
        return grad_norm, grad_norm.isfinite() & self.batch_statistics.are_finite()

    def _finish_window(self, finite: Tensor) -> None:
        """Restore the statistics of a skipped window, update the weight average, and clear the gradients."""
        self.batch_statistics.restore_unless(finite)
        self.ema.update(self.network, self.num_steps_taken + 1, finite)
        self.optimizer.zero_grad(set_to_none=not self.micro_step.keeps_gradients)

    def _read_back(self, losses: Tensor, grad_norm: Tensor, finite: Tensor, names: list[str]) -> _Readback:
        """Start to copy the outcome to the host."""
        values = torch.cat([losses, torch.stack([grad_norm, finite.to(grad_norm)]).to(losses)])
        values = values.to("cpu", non_blocking=True)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()
            copied.record()
        return _Readback(values, copied, names)

    def settle(self) -> StepOutcome | None:
        """Read the outcome of the last window, unless it has been read, and count its step.

        `run` calls this after it has queued the next window's passes, so the device stays busy.

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
            self._undo()  # the passes of the next window, which have already run
            raise
        return outcome

    def _carry_through(self, work: Callable[[], Result]) -> Result:
        return carry_through(work, self._make_room)

    def _make_room(self, cause: str) -> None:
        """Release what the rest of the step does not need; the next step will need less."""
        self.micro_step.release()
        self.memory.hooks.on_recovery(cause)
        self.ask_for_less(cause)
        if len(self._reasons_to_lower) > MAX_FAILURES:
            raise TrainingError(
                f"{cause}: memory ran out more than {MAX_FAILURES} times in one step. {self.memory.hooks.what_fits()}"
            )

    def ask_for_less(self, cause: str) -> None:
        """Make all ranks lower their settings at the end of the current step, or of the next one."""
        self._reasons_to_lower.append(cause)

    def _lower_if_asked(self) -> None:
        while self.ranks.any(bool(self._reasons_to_lower)):
            causes = self.ranks.gather(self._reasons_to_lower.pop(0) if self._reasons_to_lower else "")
            self._lower(next(filter(None, causes)))
            free_memory()  # the allocator's cache of larger micro-batches

    def _recover(self, cause: str) -> None:
        self.memory.hooks.on_recovery(self._lower(cause))

    def _lower(self, cause: str) -> str:
        self.micro_step.release()
        return self.memory.lower(cause, self.num_steps_taken + (self._pending is not None))

    def _undo(self) -> None:
        """Drop the gradients and restore the running statistics of a window that will not be used."""
        self.optimizer.zero_grad(set_to_none=True)
        self.batch_statistics.restore()

    def state_dict(self) -> dict[str, Any]:
        """Settle, and return the plain values that a checkpoint needs beside weights and optimizer."""
        self.settle()
        return {
            "num_steps_taken": self.num_steps_taken,
            **self.guard.state_dict(),
            "scaler": self.scaler.state_dict(),
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.num_steps_taken = state["num_steps_taken"]
        self.guard.load_state_dict(state)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if "memory" in state:
            self.memory.load_state_dict(state["memory"])
