"""The command line: LightningCLI with our classes, links between keys, and errors that teach."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Union, get_args

import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from engine.advice import PaceAdvisor
from engine.auto import MemoryAhead, settle_memory, settle_without_plan
from engine.checkpoint_io import SafeCheckpointIO
from engine.datamodule import DetectionData
from engine.errors import ConfigError
from engine.going_on import check_settings, read_state, settings_of
from engine.loggers import check_logger_packages, combined_loggers
from engine.memory.config import MemoryConfig
from engine.module import Detector
from engine.monitor import MemoryMonitor
from engine.progress import TrainingProgress
from engine.report.memory_log import OOM_RECOVERY
from engine.reporter import RunReporter
from engine.run import RunConfig, default_callbacks, default_loggers, prepare_run_folder
from engine.throughput import Throughput
from engine.workers import WorkerAdapter

TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # windows are shared out between devices by our own sampler
    "enable_model_summary": False,
}
MAX_NUMBER = 2**32 - 1  # the largest seed
OWN_KEY_INSTEAD = {
    "precision": "model.precision",
    "accumulate_grad_batches": "data.batch_size and data.micro_batch_size",
    "gradient_clip_val": "model.optimizer.max_grad_norm",
}
SECTIONS = ("run", "data", "model", "memory", "trainer")
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
ULTRALYTICS_KEYS = {
    "amp": "model.precision",
    "batch": "data.batch_size",
    "accumulate": "data.micro_batch_size",
    "data": "data.root",
    "device": "trainer.devices",
    "epochs": "trainer.max_epochs",
    "freeze": "model.freeze_layers",
    "imgsz": "data.image_size",
    "lr0": "model.optimizer.lr",
    "lrf": "model.schedule.final_lr_fraction",
    "name": "run.folder",
    "patience": "run.patience",
    "project": "run.folder",
    "seed": "seed_everything",
}


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
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

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
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("trainer.max_epochs", "data.max_epochs")
        for key in ("batch_size", "micro_batch_size", "image_size"):
            parser.link_arguments(f"data.{key}", f"model.{key}")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Parse; a mistake becomes a ConfigError with a suggestion."""
        files = _config_files(sys.argv[1:] if args is None else args)
        for file in files:
            check_config_file(file)
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ConfigError(explain(str(error), _known_keys(parser), files)) from error
        check_numbers(self.config)

    def before_instantiate_classes(self) -> None:
        """Refuse Lightning's own keys for what yolofit does itself."""
        for key, instead in OWN_KEY_INSTEAD.items():
            value = self.config.trainer[key]
            if value != self.parser.get_default(f"trainer.{key}"):
                raise ConfigError(f"trainer.{key}: {value}: yolofit does this itself: use {instead}")
        check_logger_packages(self.config.trainer.logger)

    def instantiate_classes(self) -> None:
        """Nothing yet: `build` does."""

    def build(self) -> CommandLine:
        """Make ``datamodule``, ``model`` and ``trainer``, and the run folder if the command has one.

        Raises:
            ConfigError: If the configuration turns out to be wrong.
        """
        try:
            if self.writes_run:
                self.memory_ahead = settle_memory(self.config)
            else:
                settle_without_plan(self.config)
            check_sync_batchnorm(self.config)
            self._set_seed()  # again, so that the first weights do not depend on what was drawn until here
            super().instantiate_classes()
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        return self

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """The trainer with our loggers and callbacks, and the run folder if the command has one."""
        config = self.config_init
        throughput = Throughput()
        callbacks = [throughput, TrainingProgress(throughput), *(config.trainer.callbacks or [])]
        if not self.writes_run:
            return super().instantiate_trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
        self.model.settings = settings_of(self.config)
        num_steps_behind = 0 if config.ckpt_path is None else self._go_on(config.ckpt_path)
        folder = prepare_run_folder(config.run, config.ckpt_path, num_steps_behind)
        self.config.run.folder = folder
        advisor = PaceAdvisor(throughput, self.datamodule.workers)
        callbacks += [advisor, self._memory_monitor(folder), RunReporter(folder, findings=advisor.findings)]
        callbacks.append(WorkerAdapter(throughput))
        callbacks += default_callbacks(folder, config.run)
        logger = combined_loggers(config.trainer.logger, default_loggers(folder, num_steps_behind))
        return super().instantiate_trainer(
            callbacks=callbacks, logger=logger, plugins=[self.checkpoint_io], default_root_dir=folder
        )

    def _go_on(self, path: Path) -> int:
        """Compare this run with the checkpoint that it goes on from; returns the optimizer steps behind that."""
        checkpoint = read_state(path)
        for note in check_settings(path, checkpoint, self.model.settings, self.datamodule.class_names):
            rank_zero_only(print)(f"note: {note}")
        return checkpoint["global_step"]

    def _memory_monitor(self, folder: Path) -> MemoryMonitor:
        """The monitor of a run's memory, which shares what is known ahead and can lower the model's settings."""
        ahead, memory = self.memory_ahead, self.model.memory
        monitor = MemoryMonitor(
            folder,
            self.config_init.memory,
            plan=ahead.plan if ahead else None,
            budget_bytes=ahead.budget_bytes if ahead else None,
            adapt=lambda: memory.lower("VRAM is spilling", self.model.step.num_steps_taken),
        )
        memory.on_recovery = lambda sentence: monitor.mark(OOM_RECOVERY)
        if ahead is not None:
            memory.what_fits = ahead.what_fits
        return monitor

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
    """Refuse numbers of Lightning's keys and ours that would mean nothing, or fail later.

    Raises:
        ConfigError: Naming the key, the value and the rule.
    """
    limits = {
        "seed_everything": (0, MAX_NUMBER),
        "trainer.max_epochs": (1, MAX_NUMBER),
        "run.patience": (0, MAX_NUMBER),
    }
    for key, (low, high) in limits.items():
        value = config[key]
        if value is None or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{key}: {value}: must be between {low} and {high}")


def check_config_file(path: Path) -> None:
    """Refuse a file that is no configuration at all; the parser would not name it.

    Raises:
        ConfigError: If it is not UTF-8, not YAML, or has no keys where there must be some.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: {path}: cannot be read ({error.strerror}): give a readable file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config: {path}: is not in UTF-8 ({error}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path}: holds no keys, such as data and model: give a configuration")
    for section in SECTIONS:
        if not isinstance(content.get(section, {}), dict):
            raise ConfigError(f"{path}: {section}: {content[section]}: expected keys below it, indented")


def check_sync_batchnorm(config: Namespace) -> None:
    """Refuse BatchNorm over devices where torch or recomputation cannot do it.

    Raises:
        ConfigError: On a CPU, or with a recompute level that takes a layer's forward pass twice.
    """
    if not config.trainer.sync_batchnorm:
        return
    if config.trainer.accelerator == "cpu":
        raise ConfigError("trainer.sync_batchnorm: true: torch has it for GPUs only: leave it out")
    levels = {config.model.recompute, *(config.model.recompute_layers or {}).values()}
    if levels != {"none"}:
        raise ConfigError(
            f"trainer.sync_batchnorm: true: model.recompute is {config.model.recompute}, but devices can normalise "
            "together only in layers that keep everything: set model.recompute: none, or leave "
            "trainer.sync_batchnorm out"
        )


def explain(message: str, known_keys: list[str], config_files: list[Path]) -> str:
    """One line out of jsonargparse's message: file or key, value, rule, remedy.

    Args:
        message: What the parser said.
        known_keys: Every key there is.
        config_files: The files that were parsed, to name the one with the mistake.
    """
    line = " ".join(message.split())
    if match := re.match(r"Group '(.+)' does not accept option '(.+)'", line):
        return _unknown_key(f"{match[1]}.{match[2]}", known_keys, config_files)
    if match := re.search(r"[Uu]nrecognized arguments?: --([\w.]+)|Option '(.+)' is not accepted", line):
        return _unknown_key(match[1] or match[2], known_keys, config_files)
    if match := re.match(r'Parser key "(.+?)": (?:.*?)Expected an? (.+?)\. Got value: (.*)', line):
        key, expected, value = match.groups()
        expected = re.sub(r"<class '(.+?)'>", r"\1", expected).replace("typing.Literal", "one of ")
        return f"{_place(key, config_files, value)}{key}: {value}: expected {expected}"
    if match := re.match(r"the following arguments are required: (.+)", line):
        return f"{match[1]}: missing: give --{match[1]}, or a configuration that has it with --config"
    return line


REFUSED_KEYS = {"model.compile": "torch.compile is slower than recompute elementwise: leave it out (docs/speed.md)"}
"""Keys that users of other trainers look for, and why there are none."""


def _unknown_key(key: str, known_keys: list[str], config_files: list[Path]) -> str:
    if key in REFUSED_KEYS:
        return f"{_place(key, config_files)}{key}: no such key: {REFUSED_KEYS[key]}"
    name = key.rpartition(".")[2]
    near = ULTRALYTICS_KEYS.get(name) or next(iter(difflib.get_close_matches(key, known_keys, n=1)), None)
    remedy = f"did you mean {near}?" if near else "see --help for all keys"
    return f"{_place(key, config_files)}{key}: no such key: {remedy}"


def _place(key: str, config_files: list[Path], value: str | None = None) -> str:
    """The file that sets a key (to ``value``, if given), for messages; nothing if the command line does."""
    for path in config_files:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is not None and value in (None, str(found)):
            return f"{path}: "
    return ""


def _config_files(args: list[str]) -> list[Path]:
    """The files that ``--config FILE``, ``--config=FILE`` or ``-c FILE`` name."""
    joined = [match[1] for arg in args if (match := re.match(r"(?:--config|-c)=(.+)", arg))]
    parted = [after for before, after in pairwise(args) if before in ("--config", "-c")]
    return [path for name in joined + parted if (path := Path(name)).is_file()]


def _whole_numbers_first(parser: LightningArgumentParser) -> None:
    """Read ``limit_train_batches: 1`` as one batch, never as 1.0, all of them.

    The first type of a union that accepts a value wins, and Python does not keep their order: it may answer
    ``Optional[Union[int, float]]`` with an equal ``Optional[Union[float, int]]`` that another module asked for before.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if int in types and float in types:
            action._typehint = Union[tuple(sorted(types, key=lambda kind: kind is not int))]  # noqa: UP007


def _known_keys(parser: LightningArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest]


def _quiet_libraries() -> None:
    """Drop Lightning's greetings and the advice that does not apply to this loop."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
