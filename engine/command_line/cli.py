"""The command line: LightningCLI with our classes, links between keys, and errors that teach."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union, get_args

from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from engine.command_line.explain import Words, check_words, explain, reason_in
from engine.command_line.file_defaults import parse_with_file
from engine.command_line.foreign_callbacks import check_callback_settings, check_callbacks, check_distinct
from engine.command_line.paths import expand_paths
from engine.command_line.trainer_keys import (
    MAX_NUMBER,
    check_finite,
    check_hardware,
    check_shares,
    check_trainer,
    explained_by_lightning,
    settled_devices,
)
from engine.errors import ConfigError
from engine.loop.advice import PaceAdvisor
from engine.loop.datamodule import DetectionData, Split
from engine.loop.loggers import check_logger_packages, combined_loggers
from engine.loop.module import Detector
from engine.loop.monitor import MemoryMonitor
from engine.loop.processes import WindowParallel, check_images_per_device, strategy_for
from engine.loop.progress import TrainingProgress
from engine.loop.reporter import RunReporter
from engine.loop.throughput import Throughput
from engine.loop.workers import WorkerAdapter
from engine.machine.devices import count_devices, device_of
from engine.memory.allocator import budget_bytes_of
from engine.memory.config import MemoryConfig
from engine.planning.settle import MemoryAhead, settle_memory, settled_without_plan
from engine.report.memory_log import OOM_RECOVERY
from engine.run.changed_settings import check_settings, read_state, settings_of
from engine.run.checkpoint_io import SafeCheckpointIO
from engine.run.folder import RunConfig, default_callbacks, default_loggers, prepare_run_folder
from engine.training.config import ModelConfig
from engine.training.out_of_memory import RecoveryHooks
from engine.training.precision import check_precision
from engine.training.self_test import check_recompute

TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # windows are shared out between devices by our own sampler
    "enable_model_summary": False,
}
NEEDLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",  # the averaged network is, always
    ".*exists and is not empty.*",  # checkpoints and logs share the run folder
    ".*LeafSpec.*",
    ".*your dataloader is not resumable.*",  # the sampler is told where to go on
    ".*smaller than the logging interval.*",
    ".*overridden `transfer_batch_to_device`.*",
    ".*when using `ckpt_path`, callbacks used to create the checkpoint.*",  # validation has none; patience may change
    ".*could not find the monitored key.*",  # epochs without validation
    ".*dirpath has changed.*",  # a run resumed into another folder looks for its own best epoch
    ".*sync_dist=True.*",  # what is logged has been summed over the processes already
)


class CommandLine(LightningCLI):
    """The parsed configuration (``config``); `build` makes ``datamodule``, ``model`` and ``trainer`` from it."""

    def __init__(self, args: list[str] | None = None, *, writes_run: bool = True) -> None:
        """Parse.

        Args:
            args: Command line without the program's name; None for the real one.
            writes_run: Whether the command makes a run folder with logs and checkpoints.

        Raises:
            ConfigError: If the configuration is wrong.
        """
        self.writes_run = writes_run
        self.checkpoint_io = SafeCheckpointIO()
        self.memory_ahead: MemoryAhead | None = None
        _quiet_libraries()
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            Detector,
            DetectionData,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of ``trainer``, ``model`` and ``data``; those of ``model`` are the fields of `ModelConfig`."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_class_arguments(ModelConfig, "model", sub_configs=True)
        skipped = {"validation_split"} if self.writes_run else set()  # training validates on ``val``
        parser.add_class_arguments(DetectionData, "data", sub_configs=True, fail_untyped=False, skip=skipped)

    @property
    def ckpt_path(self) -> Path | None:
        """The checkpoint that the command line names."""
        return self.config.ckpt_path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys beside ``trainer``, ``model`` and ``data``, and the links between keys."""
        _whole_numbers_first(parser)
        parser.add_class_arguments(RunConfig, "run")
        parser.add_class_arguments(MemoryConfig, "memory")
        parser.add_argument("--ckpt_path", type=Path | None, help="Checkpoint to resume or to validate.")
        if not self.writes_run:
            parser.add_argument("--json", type=bool, default=False, nargs="?", const=True, help="Print JSON only.")
            parser.add_argument("--split", type=Split, default="val", help="Images to validate on.")
            parser.link_arguments("split", "data.validation_split")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("trainer.max_epochs", "data.max_epochs")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Parse; a mistake becomes a ConfigError with a suggestion."""
        words = Words(sys.argv[1:] if args is None else args, parser._option_string_actions)
        check_words(words, _types_by_key(parser))
        try:
            self.config = parse_with_file(parser, words.in_order)
        except ArgumentError as error:
            raise ConfigError(explain(str(error), words.files)) from error
        expand_paths(self.config)
        self.config.trainer.devices = settled_devices(self.config.trainer.devices)
        check_numbers(self.config)

    def before_instantiate_classes(self) -> None:
        """Refuse what Lightning's own keys cannot be here, and before anything is made."""
        check_trainer(self.config.trainer)
        check_callback_settings(self.config.trainer)
        check_logger_packages(self.config.trainer.logger)

    def instantiate_classes(self) -> None:
        """Nothing yet: `build` does."""

    def build(self) -> CommandLine:
        """Make ``datamodule``, ``model`` and ``trainer``, and the run folder if the command has one.

        Raises:
            ConfigError: If the configuration turns out to be wrong.
        """
        try:
            check_hardware(self.config.trainer)
            self._strategy = self._settle_processes()
            check_precision(self.config.model.precision, device_of(self.config.trainer))
            if self.writes_run:
                self.config, self.memory_ahead = settle_memory(self.config)
                model = self.config.model
                levels = model.recompute, model.recompute_layers, model.fused_kernels
                check_recompute(model.network, *levels, device_of(self.config.trainer))
            else:
                self.config = settled_without_plan(self.config)
            self._set_seed()  # again, so that the first weights do not depend on what was drawn until here
            with explained_by_lightning():
                self._instantiate()
        except ValueError as error:
            raise ConfigError(reason_in(str(error))) from error
        return self

    def _instantiate(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule: DetectionData = self.config_init.data
        data = self.datamodule
        hooks = RecoveryHooks(lambda sentence: self._memory_monitor.mark(OOM_RECOVERY))
        if self.memory_ahead is not None:
            hooks = replace(hooks, what_fits=self.memory_ahead.what_fits)
        self.model = Detector(
            self.config_init.model,
            data.class_names,
            data.batch_size,
            data.micro_batch_size,
            data.image_size,
            settings_of(self.config),
            hooks,
        )
        self.trainer = self.instantiate_trainer()

    def _settle_processes(self) -> WindowParallel | str:
        """How the processes of the run work together; what they cannot do is refused."""
        check_sync_batchnorm(self.config)
        num_processes = count_devices(self.config.trainer)
        check_images_per_device(self.config.data.batch_size, num_processes)
        return strategy_for(self.config.trainer.strategy, num_processes)

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """The trainer with our loggers and callbacks, and the run folder if the command has one."""
        config = self.config_init
        trainer = config.trainer
        foreign = trainer.callbacks or []
        foreign = list(foreign) if isinstance(foreign, Sequence) else [foreign]
        kwargs["strategy"] = self._strategy
        throughput = Throughput()
        progress = [] if trainer.enable_progress_bar is False else [TrainingProgress(throughput)]
        if not self.writes_run:
            foreign = [callback for callback in foreign if not isinstance(callback, Checkpoint)]
            callbacks = [throughput, *progress, *foreign]
            return super().instantiate_trainer(callbacks=callbacks, logger=False, enable_checkpointing=False, **kwargs)
        for split in ("train", "val"):
            self.datamodule.dataset_yaml.sources(split)  # before a run folder is made
        check_callbacks(foreign, has_validation=trainer.limit_val_batches != 0)
        check_distinct([*foreign, *default_callbacks(config.run.folder, config.run)])
        self._check_shares()
        callbacks = [throughput, *progress, *foreign]
        num_steps_behind = 0 if config.ckpt_path is None else self._go_on(config.ckpt_path)
        folder = prepare_run_folder(config.run, config.ckpt_path, num_steps_behind)
        self.config.run.folder = folder
        advisor = PaceAdvisor(throughput)
        self._memory_monitor = self._monitor_memory(folder)
        callbacks += [advisor, self._memory_monitor, RunReporter(folder, findings=advisor.findings)]
        callbacks.append(WorkerAdapter(throughput))
        callbacks += default_callbacks(folder, config.run)
        logger = combined_loggers(config.trainer.logger, default_loggers(folder, num_steps_behind))
        return super().instantiate_trainer(
            callbacks=callbacks, logger=logger, plugins=[self.checkpoint_io], default_root_dir=folder, **kwargs
        )

    def _go_on(self, path: Path) -> int:
        """Compare this run with the checkpoint that it goes on from; returns the optimizer steps behind that."""
        checkpoint = read_state(path)
        for note in check_settings(path, checkpoint, self.model.settings, self.datamodule.class_names):
            rank_zero_only(print)(f"note: {note}")
        return checkpoint["global_step"]

    def _check_shares(self) -> None:
        """Refuse shares of an epoch that the data set has not; it is counted only if there are some."""
        trainer = self.config.trainer
        shares = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.val_check_interval)
        if any(share not in (None, 0, 1) for share in shares):
            check_shares(trainer, *self.datamodule.count_batches(count_devices(trainer)))

    def _monitor_memory(self, folder: Path) -> MemoryMonitor:
        """The monitor of a run's memory, which shares what is known ahead and can lower the model's settings."""
        ahead = self.memory_ahead
        return MemoryMonitor(
            folder,
            self.config_init.memory,
            plan=ahead.plan if ahead else None,
            budget_bytes=ahead.budget_bytes if ahead else None,
            adapt=self._adapt,
        )

    def _adapt(self) -> str:
        self.model.step.ask_for_less("VRAM is spilling")
        return "the next step ends with lower settings, on all devices alike"

    def save_config(self) -> None:
        """Write ``config.yaml``, complete and fit to run again, and ``plan.json`` into the run folder."""
        if rank_zero_only.rank:
            return
        path = self.config.run.folder / "config.yaml"
        try:
            if self.memory_ahead is not None:
                self.memory_ahead.save(self.config.run.folder)
            config = self.config.clone()
            config.ckpt_path = None  # or the file would go on with this run instead of making it again
            self.parser.save(config, path, skip_unset=False, overwrite=True, multifile=False)
        except OSError as error:
            message = f"run.folder: {path}: cannot be written ({error.strerror}): make room, or choose another"
            raise ConfigError(message) from error


def check_numbers(config: Namespace) -> None:
    """Refuse numbers that would mean nothing, or fail later, of keys that no class of ours checks.

    Raises:
        ConfigError: Naming the key, the value and the rule.
    """
    check_finite(config)
    if config.memory.budget != "auto":
        budget_bytes_of(config.memory.budget, 1)
    if str(config.run.folder) == "null":
        raise ConfigError("run.folder: null: give a folder, or leave it out")
    limits = {
        "seed_everything": (0, MAX_NUMBER),
        "run.patience": (0, MAX_NUMBER),
        "run.checkpoint_minutes": (0, MAX_NUMBER),
        "model.max_skipped_windows": (0, MAX_NUMBER),
        **{f"model.loss.{name}": (0, MAX_NUMBER) for name in ("box", "cls", "dfl")},
    }
    for key, (low, high) in limits.items():
        value = config[key]
        if value is None or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{key}: {value}: must be between {low} and {high}")


def check_sync_batchnorm(config: Namespace) -> None:
    """Refuse BatchNorm over devices: they would have to meet in every layer, also when one has run out of memory.

    Raises:
        ConfigError: With what helps small micro-batches instead.
    """
    if config.trainer.sync_batchnorm:
        raise ConfigError(
            "trainer.sync_batchnorm: true: a device that has fewer images, or runs out of memory, would leave the "
            "others waiting in a layer: leave it out, and raise data.micro_batch_size with model.recompute: auto, or "
            "set model.freeze_batch_norm: true"
        )


def _whole_numbers_first(parser: LightningArgumentParser) -> None:
    """Read ``limit_train_batches: 1`` as one batch, never as 1.0, all of them.

    The first type of a union that accepts a value wins, and Python does not keep their order: it may answer
    ``Optional[Union[int, float]]`` with an equal ``Optional[Union[float, int]]`` that another module asked for before.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if int in types and float in types:
            action._typehint = Union[tuple(sorted(types, key=lambda kind: kind is not int))]  # noqa: UP007


def _types_by_key(parser: LightningArgumentParser) -> dict[str, Any]:
    """The type of each key that can be given; None for sections."""
    actions = [action for action in parser._actions if action.dest and action.option_strings]
    return {action.dest: getattr(action, "_typehint", None) for action in actions if action.option_strings[0][0] == "-"}


def _quiet_libraries() -> None:
    """Drop Lightning's greetings and the advice that does not apply to this loop."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
