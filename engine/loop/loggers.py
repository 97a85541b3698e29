"""Loggers that a configuration adds: the check of their packages, and sending pictures to them."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from engine.errors import ConfigError
from engine.report.compact import compact

PACKAGES = {
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow", "mlflow_skinny"),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}
"""The packages of Lightning's loggers, any one of each; metrics.csv and TensorBoard need no other package."""
SECRET = re.compile(r"api_?key|token|password|secret|credential", re.IGNORECASE)
USER_IN_URL = re.compile(r"://[^/@]*:[^/@]*@")


def check_logger_packages(loggers: Any) -> None:
    """Check that the package of each logger is installed, and that its arguments hold no secret.

    Args:
        loggers: ``trainer.logger`` as configured: nothing, a bool, a section with ``class_path``, or a list of these.

    Raises:
        ConfigError: With the package and how to install it, or the argument and where a secret belongs.
    """
    for entry in loggers if isinstance(loggers, Sequence) else [loggers]:
        path, arguments = (
            entry.get(key) if isinstance(entry, Mapping) else getattr(entry, key, None)
            for key in ("class_path", "init_args")
        )
        name = str(path).rpartition(".")[2]
        _check_secrets(name, vars(arguments) if isinstance(arguments, Namespace) else arguments or {})
        packages = PACKAGES.get(name, ())
        if packages and not any(find_spec(package) for package in packages):
            raise ConfigError(
                f"trainer.logger: {name}: needs the package {packages[0]}, which is not installed: "
                f"pip install {packages[0]}, or leave trainer.logger out: metrics.csv and TensorBoard need nothing"
            )


def _check_secrets(logger: str, arguments: Mapping[str, Any]) -> None:
    """Refuse secrets, because ``config.yaml`` repeats every argument in the run folder, which people share."""
    for name, value in arguments.items():
        if value and (SECRET.search(name) or USER_IN_URL.search(str(value))):
            raise ConfigError(
                f"trainer.logger: {logger}: {name}: a secret would be written into config.yaml: remove it here and set "
                "the environment variable that the logger's package reads, such as WANDB_API_KEY"
            )


def combined_loggers(configured: Any, defaults: Sequence[Logger]) -> list[Logger]:
    """Return ``defaults`` and the instantiated loggers of ``trainer.logger``; none if that is false."""
    if configured is False:
        return []
    if configured is None or configured is True:
        return list(defaults)
    return [*defaults, *(configured if isinstance(configured, Sequence) else [configured])]


def send_pictures(loggers: Iterable[Logger], pictures: Sequence[Path], step: int) -> None:
    """Send PNG and JPEG files to every logger that takes pictures; the names of the files become tags."""
    for logger in loggers:
        for path in pictures:
            _send(logger, path, step)


def _send(logger: Any, path: Path, step: int) -> None:
    kinds = {kind.__name__ for kind in type(logger).mro()}  # by name: their packages may not be installed
    if isinstance(logger, TensorBoardLogger):
        from tensorboard.compat.proto.summary_pb2 import Summary  # takes half a second to import

        picture = compact(path, "JPEG")
        width, height = picture.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=picture.content)
        summary = Summary(value=[Summary.Value(tag=f"pictures/{path.stem}", image=image)])
        logger.experiment.file_writer.add_summary(summary, step)  # ``add_image`` would add a PNG of ten times the size
    elif "WandbLogger" in kinds:
        logger.log_image(f"pictures/{path.stem}", [str(path)])
    elif "MLFlowLogger" in kinds:
        logger.experiment.log_artifact(logger.run_id, str(path), "pictures")
