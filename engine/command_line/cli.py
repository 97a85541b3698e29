"""The command line: LightningCLI with yolofit's classes, links between keys, and errors that suggest a fix."""

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
from lightning.pytorch.callbacks import Callback, Checkpoint
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
from engine.machine.devices import count_devices, device_of
from engine.memory.allocator import budget_bytes_of
from engine.memory.config import MemoryConfig
from engine.planning.settle import MemoryAhead, changed, num_classes_of, settle_memory, settled_without_plan
from engine.run.changed_settings import check_settings, read_state, settings_of
from engine.run.checkpoint_io import SafeCheckpointIO
from engine.run.folder import RunConfig, default_callbacks, default_loggers, prepare_run_folder
from engine.run.starting_network import StartingNetwork, starting_network
from engine.training.config import ModelConfig
from engine.training.out_of_memory import RecoveryHooks
from engine.training.precision import check_precision
from engine.training.self_test import check_recompute

TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # yolofit's sampler distributes windows to devices
    "enable_model_summary": False,
}
NEEDLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",  # the averaged network always is
    ".*exists and is not empty.*",  # checkpoints and logs share the run folder
    ".*LeafSpec.*",
    ".*your dataloader is not resumable.*",  # the sampler knows where to resume
    ".*smaller than the logging interval.*",
    ".*overridden `transfer_batch_to_device`.*",
    ".*when using `ckpt_path`, callbacks used to create the checkpoint.*",  # validation has none; patience may change
    ".*could not find the monitored key.*",  # epochs without validation
    ".*dirpath has changed.*",  # a run may resume in another folder
    ".*sync_dist=True.*",  # the logged values are sums over the processes
)


class CommandLine(LightningCLI):
    """The parsed configuration, ``config``; `build` makes ``datamodule``, ``model`` and ``trainer`` from it."""

    def __init__(self, args: list[str] | None = None, *, writes_run: bool = True) -> None:
        """Parse.

        Args:
            args: Command line without the program's name; None for that of the process.
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
        """Add the keys of ``trainer``, ``model`` (the fields of `ModelConfig`) and ``data``."""
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
        """Add the other keys, and the links between keys."""
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
            config = expand_paths(parse_with_file(parser, words.in_order))
        except ArgumentError as error:
            raise ConfigError(explain(str(error), words.files)) from error
        self.config = changed(config, {"trainer.devices": settled_devices(config.trainer.devices)})
        check_numbers(self.config)

    def before_instantiate_classes(self) -> None:
        """Check Lightning's keys before anything is made."""
        check_trainer(self.config.trainer)
        check_callback_settings(self.config.trainer)
        check_logger_packages(self.config.trainer.logger)

    def instantiate_classes(self) -> None:
        """Do nothing: `build` makes the objects."""

    def starting_network(self, num_classes: int | None = None) -> StartingNetwork:
        """Find the network of the configuration; without ``num_classes``, with the classes of the data set.

        Raises:
            ConfigError: If there is no such network, it cannot be built, or its YAML file has changed.
        """
        model = self.config.model
        if num_classes is None:
            num_classes = num_classes_of(self.config.data)
        return starting_network(model.network, num_classes, model.weights, self.ckpt_path)

    def build(self, network: str | None = None) -> CommandLine:
        """Make ``datamodule``, ``model`` and ``trainer``, and the run folder if the command has one.

        Args:
            network: Replaces ``model.network`` and ``model.weights``, for a command that has loaded weights itself.

        Raises:
            ConfigError: If the configuration turns out to be wrong.
        """
        if network is not None:
            self.config = changed(self.config, {"model.network": network, "model.weights": None})
        try:
            check_hardware(self.config.trainer)
            strategy = self._strategy()
            check_precision(self.config.model.precision, device_of(self.config.trainer))
            self._network = self.starting_network()
            if self.writes_run:
                self.config, self.memory_ahead = settle_memory(self.config, *self._network)
                model, device = self.config.model, device_of(self.config.trainer)
                levels = model.recompute, model.recompute_layers, model.fused_kernels
                check_recompute(model.network, self._network.architecture, *levels, device)
            else:
                self.config = settled_without_plan(self.config, self._network.stride_px)
            self._set_seed()  # again: the first weights must not depend on earlier draws
            with explained_by_lightning():
                self._instantiate(strategy)
        except ValueError as error:
            raise ConfigError(reason_in(str(error))) from error
        return self

    def _strategy(self) -> WindowParallel | str:
        """Check how the run shares work between devices, and return the strategy."""
        check_sync_batchnorm(self.config)
        num_processes = count_devices(self.config.trainer)
        check_images_per_device(self.config.data.batch_size, num_processes)
        return strategy_for(self.config.trainer.strategy, num_processes)

    def _instantiate(self, strategy: WindowParallel | str) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule: DetectionData = self.config_init.data
        data, ahead = self.datamodule, self.memory_ahead
        monitor = MemoryMonitor(
            self.config_init.memory,
            plan=ahead.plan if ahead else None,
            budget_bytes=ahead.budget_bytes if ahead else None,
        )
        hooks = RecoveryHooks(monitor.mark_recovery)
        if ahead is not None:
            hooks = replace(hooks, what_fits=ahead.what_fits)
        config = self.config_init.model
        if self.ckpt_path is not None:  # the run takes the weights of the checkpoint
            config = replace(config, weights=None)
        self.model = Detector(
            config,
            data.class_names,
            data.batch_size,
            data.micro_batch_size,
            data.image_size,
            settings_of(self.config),
            hooks,
            self._network.architecture,
        )
        if self.writes_run:
            self.trainer = self._training_trainer(strategy, monitor)
        else:
            self.trainer = self._validation_trainer(strategy)

    def _training_trainer(self, strategy: WindowParallel | str, monitor: MemoryMonitor) -> Trainer:
        """Make the run folder, and the trainer with yolofit's loggers and callbacks."""
        config, added = self.config_init, self._added_callbacks()
        for split in ("train", "val"):
            self.datamodule.dataset_yaml.sources(split)  # raises before a run folder is made
        check_callbacks(added, has_validation=config.trainer.limit_val_batches != 0)
        check_distinct([*added, *default_callbacks(config.run.folder, config.run)])
        self._check_shares()
        num_steps_behind = 0 if config.ckpt_path is None else self._check_resumed(config.ckpt_path)
        folder = prepare_run_folder(config.run, config.ckpt_path, num_steps_behind)
        self.config = changed(self.config, {"run.folder": folder})
        throughput = Throughput()
        advisor = PaceAdvisor(throughput)
        callbacks = [throughput, *self._progress(throughput), *added, advisor, monitor]
        callbacks += [RunReporter(folder, advisor.findings), *default_callbacks(folder, config.run)]
        return self.instantiate_trainer(
            callbacks=callbacks,
            logger=combined_loggers(config.trainer.logger, default_loggers(folder, num_steps_behind)),
            plugins=[self.checkpoint_io],
            default_root_dir=folder,
            strategy=strategy,
        )

    def _validation_trainer(self, strategy: WindowParallel | str) -> Trainer:
        throughput = Throughput()
        added = [callback for callback in self._added_callbacks() if not isinstance(callback, Checkpoint)]
        callbacks = [throughput, *self._progress(throughput), *added]
        return self.instantiate_trainer(
            callbacks=callbacks, logger=False, enable_checkpointing=False, strategy=strategy
        )

    def _added_callbacks(self) -> list[Callback]:
        """Return the callbacks of ``trainer.callbacks``."""
        added = self.config_init.trainer.callbacks or []
        return list(added) if isinstance(added, Sequence) else [added]

    def _progress(self, throughput: Throughput) -> list[Callback]:
        trainer = self.config.trainer
        return [] if trainer.enable_progress_bar is False else [TrainingProgress(throughput, trainer.max_steps)]

    def _check_resumed(self, path: Path) -> int:
        """Compare the settings with those of a checkpoint; return the number of optimizer steps before it."""
        checkpoint = read_state(path)
        for note in check_settings(path, checkpoint, self.model.settings, self.datamodule.class_names):
            rank_zero_only(print)(f"note: {note}")
        return checkpoint["global_step"]

    def _check_shares(self) -> None:
        """Check the shares of an epoch against the data set, which is read only if there are some."""
        trainer = self.config.trainer
        shares = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.val_check_interval)
        if any(share not in (None, 0, 1) for share in shares):
            check_shares(trainer, *self.datamodule.count_batches(count_devices(trainer)))

    def save_config(self) -> None:
        """Write ``config.yaml``, complete and ready to run again, and ``plan.json`` into the run folder."""
        if rank_zero_only.rank:
            return
        path = self.config.run.folder / "config.yaml"
        try:
            if self.memory_ahead is not None:
                self.memory_ahead.save(self.config.run.folder)
            config = changed(self.config, {"ckpt_path": None})  # the file must start a run, not resume this one
            self.parser.save(config, path, skip_unset=False, overwrite=True, multifile=False)
        except OSError as error:
            message = f"run.folder: {path}: cannot be written ({error.strerror}): make room, or choose another"
            raise ConfigError(message) from error


def check_numbers(config: Namespace) -> None:
    """Check the numbers of keys that no class of yolofit checks.

    Raises:
        ConfigError: With the key, the value and the rule.
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
    """Refuse BatchNorm over devices: a device that has run out of memory could not join the others in every layer.

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
    """Read ``limit_train_batches: 1`` as one batch and not as 1.0, all batches.

    The first type of a union that accepts a value wins, and Python caches equal unions: its order may be that of an
    equal ``Optional[Union[float, int]]`` of another module.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if int in types and float in types:
            action._typehint = Union[tuple(sorted(types, key=lambda kind: kind is not int))]  # noqa: UP007


def _types_by_key(parser: LightningArgumentParser) -> dict[str, Any]:
    """Return the type of each key that can be given; None for sections."""
    actions = [action for action in parser._actions if action.dest and action.option_strings]
    return {action.dest: getattr(action, "_typehint", None) for action in actions if action.option_strings[0][0] == "-"}


def _quiet_libraries() -> None:
    """Silence Lightning's greetings, and advice that does not apply to yolofit's loop."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
