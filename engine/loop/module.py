"""The LightningModule: connects network, loss, optimizer step, average and validation; computes nothing itself.

Lightning's "batch" is a window: one ``training_step`` is one optimizer step (`engine.training.step`).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from data.loading.batch import Batch
from engine.errors import ConfigError, config_key
from engine.loop.datamodule import DetectionData
from engine.loop.statistics import EpochStatistics
from engine.run.checkpoint import load_weights, network_description
from engine.run.logs import MetricsCsv
from engine.run.starting_network import network_named, starting_network
from engine.training.color import colored
from engine.training.config import ModelConfig
from engine.training.ema import WeightAverage
from engine.training.nonfinite import NonFiniteGuard, find_origin
from engine.training.optim import build_optimizer
from engine.training.out_of_memory import MemorySettings, RecoveryHooks, in_parts
from engine.training.precision import assert_fp32, build_scaler, check_precision
from engine.training.schedule import Schedule
from engine.training.step import StepOutcome, TrainingStep
from engine.validation.evaluation import Evaluation
from models.architecture import Architecture
from models.detection.loss import DetectionLoss
from models.network import (
    batch_norms,
    build_network,
    freeze_batch_norms,
    freeze_layers,
    head_strides,
    input_step_px,
)
from models.recompute.levels import apply_recompute


class Detector(L.LightningModule):
    """A detector and its training."""

    def __init__(
        self,
        config: ModelConfig,
        class_names: list[str],
        batch_size: int,
        micro_batch_size: int,
        image_size: int,
        settings: dict[str, Any] | None = None,
        hooks: RecoveryHooks = RecoveryHooks(),  # noqa: B008  frozen
        architecture: Architecture | None = None,
    ) -> None:
        """Build the network.

        Args:
            config: The network and the parts of its optimizer step.
            class_names: The classes of the data set.
            batch_size: Effective batch.
            micro_batch_size: Images on the device at a time.
            image_size: Side of the network's input in pixels.
            settings: The settings of the run by key; ``last.ckpt`` keeps them for a resume.
            hooks: Called when memory runs out.
            architecture: Architecture of the network; None takes that of ``config``.

        Raises:
            ConfigError: If there is no such network, the weights cannot be used, or a value does not fit the network.
        """
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.class_names = class_names
        self.batch_size = batch_size
        self.image_size = image_size
        self.settings = settings or {}

        if architecture is None and config.weights is not None:
            architecture = starting_network(config.network, len(class_names), config.weights).architecture
        with network_named(config.network):
            self.network = build_network(architecture or config.network, len(class_names))
        self.stride_px = input_step_px(self.network)
        if config.weights is not None:
            transfer = load_weights(self.network, config.weights, self.description, "model.weights")
            rank_zero_only(print)(transfer.table(), file=sys.stderr)
        self.loss = DetectionLoss(head_strides(self.network), config.fused_kernels)
        self.ema = WeightAverage(self.network, config.ema)
        self.memory = self._memory_settings(micro_batch_size, hooks)
        self.validation_batch_size = micro_batch_size
        self.evaluation = Evaluation(self.loss, config.loss, config.nms, class_names)
        with config_key("model.freeze_layers"):
            freeze_layers(self.network, config.freeze_layers)
        if config.freeze_batch_norm:
            freeze_batch_norms(batch_norms(self.network))
        self._begin()

    def _begin(self) -> None:
        """Set the state of a run that has not started."""
        self.step: TrainingStep | Any = None  # None before `on_train_start`
        self.last_outcome: StepOutcome | None = None
        self.epoch_statistics = EpochStatistics(self.config.optimizer.max_grad_norm)
        self.validation_summary: dict[str, float] = {}
        self._step_state: dict[str, Any] | None = None
        self._former_steps_per_epoch: int | None = None
        self._last_window: Batch | None = None

    def _memory_settings(self, micro_batch_size: int, hooks: RecoveryHooks) -> MemorySettings:
        """Apply the recompute levels, and return the settings that memory depends on."""
        level, layers = self.config.recompute, dict(self.config.recompute_layers or {})
        if level == "auto":
            raise ConfigError("model.recompute: auto: only engine.fit resolves auto. In your own code, give a level.")
        with config_key("model.recompute"):
            apply_recompute(self.network, level, layers, self.config.fused_kernels)
        sizes = self.batch_size, micro_batch_size
        return MemorySettings(self.network, *sizes, level, layers, self.config.fused_kernels, hooks)

    @property
    def micro_batch_size(self) -> int:
        """The present number of images on the device at a time."""
        return self.memory.micro_batch_size

    def ask_for_less(self, cause: str) -> str:
        """Have all devices lower their settings after the next step; return a sentence that says so."""
        self.step.ask_for_less(cause)
        return "the next step ends with lower settings on all devices"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the trainable parameters."""
        optimizer = build_optimizer(self.network, self.config.optimizer, self.batch_size)
        self._group_settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr", "momentum")}
            for group in optimizer.param_groups  # the schedule sets rate and momentum
        ]
        return optimizer

    def setup(self, stage: str) -> None:
        """Give the validation set to the evaluation."""
        if isinstance(self.trainer.datamodule, DetectionData):
            self.evaluation.prepare(self.trainer.datamodule.validation_dataset.source.index)

    def on_fit_start(self) -> None:
        """Refuse a precision that the device does not have."""
        check_precision(self.config.precision, self.device)

    def on_validation_start(self) -> None:
        """Refuse a precision that the device does not have; free captured graphs."""
        check_precision(self.config.precision, self.device)
        if self.step is not None:
            self.step.micro_step.release()

    def on_train_start(self) -> None:
        """Make the optimizer step, now that the length of the run is known."""
        optimizer = self.optimizers()
        assert_fp32(self.network, optimizer.optimizer)
        self.step = TrainingStep(
            network=self.network,
            loss=self.loss,
            config=self.config,
            optimizer=optimizer.optimizer,
            schedule=self._schedule(),
            ema=self.ema,
            scaler=build_scaler(self.config.precision, self.device),
            guard=NonFiniteGuard(self.config.max_skipped_windows, self._find_origin),
            memory=self.memory,
            take_step=optimizer.step,
        )
        if self._step_state is not None:
            self.step.load_state_dict(self._step_state | self._steps_in_new_epochs(self._step_state))
            for group, own in zip(optimizer.optimizer.param_groups, self._group_settings, strict=True):
                group |= own
        self.memory.agree_over_ranks(self.step.ranks)

    def _steps_in_new_epochs(self, state: dict[str, Any]) -> dict[str, int]:
        """Convert the steps taken to the present steps per epoch, so that the schedule keeps its place in epochs."""
        if not self._former_steps_per_epoch:
            return {}
        num_epochs = state["num_steps_taken"] / self._former_steps_per_epoch
        return {"num_steps_taken": round(num_epochs * self.step.schedule.steps_per_epoch)}

    def _schedule(self) -> Schedule:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            rule = "must be at least 1, because the schedule needs the length of the run"
            raise ConfigError(f"trainer.max_epochs: {epochs}: {rule}")
        return Schedule(self.config.schedule, epochs, int(self.trainer.num_training_batches))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave the window in host memory: micro-batches go to the device one by one."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Reset the statistics of the epoch."""
        self.epoch_statistics = EpochStatistics(self.config.optimizer.max_grad_norm)
        self.validation_summary = {}

    def training_step(self, window: Batch, batch_idx: int) -> None:
        """Take one optimizer step."""
        outcome = self.step.run(window)
        self._last_window = window  # kept until its outcome is known
        self._record(outcome)
        if self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._record(self.step.settle())  # the progress table needs the epoch's means before `on_train_epoch_end`

    def on_train_epoch_end(self) -> None:
        """Log the epoch, and check that weights and optimizer are in FP32."""
        summary = self.epoch_statistics.summary() | {"train/lr": self._learning_rate()} | self.validation_summary
        self.log_dict(summary, logger=False)
        for logger in self.loggers:  # before the checkpoint of this epoch; Lightning would log after it
            logger.log_metrics(summary | {"epoch": self.current_epoch}, self.global_step - 1)
            logger.save()
        assert_fp32(self.network, self.optimizers().optimizer)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self.evaluation.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the detections of the averaged weights to the metrics."""
        self.validation_batch_size = in_parts(batch, self.validation_batch_size, self._validate)

    def _validate(self, part: Batch) -> None:
        self.evaluation.update(self.ema.network, part.to(self.device, non_blocking=True), self.config.precision)

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics and show them to the callbacks; the end of the epoch logs them."""
        self.results = self.evaluation.compute()
        losses = {f"val/{name}": value for name, value in self.evaluation.losses().items()}
        self.validation_summary = losses | self.results.summary()
        self.log_dict(self.validation_summary, logger=False)

    def _record(self, outcome: StepOutcome | None) -> None:
        """Count the outcome of a window, which arrives one window late, and log it at the logging interval."""
        if outcome is None:
            return
        self.last_outcome = outcome
        self.epoch_statistics.add(outcome)
        if self.step.num_steps_taken % self.trainer.log_every_n_steps == 0:
            values = {f"step/{name}": float(value) for name, value in outcome._asdict().items()}
            for logger in self.loggers:
                if not isinstance(logger, MetricsCsv):  # metrics.csv has a row per epoch
                    logger.log_metrics(values | {"step/lr": self._learning_rate()}, self.step.num_steps_taken)

    def _find_origin(self) -> str:
        """Find where the window whose outcome was read last became inf or NaN."""
        if self._last_window is None:
            return ""
        self.step.micro_step.release()  # the search needs the memory of captured graphs
        parts = self._last_window.split(self.micro_batch_size)
        parts = [colored(part.to(self.device), self.config.fused_kernels) for part in parts]
        found = find_origin(self.network, parts, self.step.loss_sums, self.step.scaler.scale)
        return next(filter(None, self.step.ranks.gather(found)), "")

    def _learning_rate(self) -> float:
        return self.optimizers().optimizer.param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add yolofit's state in plain values, so that loading never runs code."""
        checkpoint["yolofit"] = {**self.description, "settings": self.settings}
        if self.step is not None:
            self._record(self.step.settle())
            checkpoint["yolofit"]["step"] = self.step.state_dict()
            checkpoint["yolofit"]["steps_per_epoch"] = self.step.schedule.steps_per_epoch
            checkpoint["yolofit"]["epoch_statistics"] = asdict(self.epoch_statistics)
            checkpoint["yolofit"]["validation_summary"] = {
                name: float(value) for name, value in self.validation_summary.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what `on_save_checkpoint` added."""
        about = checkpoint["yolofit"]
        self._step_state = about.get("step")
        self._former_steps_per_epoch = about.get("steps_per_epoch")
        self.validation_summary = about.get("validation_summary", {})
        if "epoch_statistics" in about:
            self.epoch_statistics = EpochStatistics(**about["epoch_statistics"])

    def result(self) -> dict[str, Any]:
        """Return the content of ``best.ckpt``: the averaged weights, named as in ``last.ckpt``, and the description."""
        state = {f"ema.network.{name}": tensor for name, tensor in self.ema.network.state_dict().items()}
        return {"state_dict": state, "yolofit": self.description}

    @property
    def description(self) -> dict[str, Any]:
        """What is needed to build this network again."""
        return network_description(self.config.network, self.class_names, self.image_size, self.network.yaml)
