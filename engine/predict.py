"""Find objects in pictures and videos: ``python -m engine.predict --ckpt_path best.ckpt --source FOLDER``.

It writes a copy of each picture with boxes, ``labels/NAME.txt`` in YOLO's form, and ``predictions.json`` in COCO's.
``--tile 640`` cuts large pictures into tiles. A file that cannot be read is named and skipped. The exit status is 0,
or 2 if a file was skipped or nothing was done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from data.errors import DataError
from engine.command_line.arguments import (
    CommandParser,
    add_checkpoint_option,
    add_nms_options,
    nms_config,
    path_option,
    path_text,
)
from engine.errors import ConfigError, run_command
from engine.inference.predictor import Predictor
from engine.inference.results import PredictionFolder, summary_line
from engine.inference.sources import find_files, read_frames
from engine.run.checkpoint import load_network
from engine.run.folder import numbered
from models.detection.postprocess import NmsConfig

SHOWN_COLUMNS = 120  # width of the output if it is not a terminal
DEVICES = ("cpu", "cuda", "mps", "xpu")


def main(args: list[str] | None = None) -> Path:
    """Predict as the command line says; return the folder of the results.

    Raises:
        ConfigError: If an option is wrong, or the results cannot be written.
        DataError: At the end, if a picture could not be read. The results of the other pictures exist.
    """
    options = _parse(args)
    nms = _check(options)
    unread: list[DataError] = []
    files = find_files(*options.source, on_error=partial(_skip, unread))
    loaded = load_network(options.ckpt_path, "--ckpt_path")
    if 0 < options.tile < loaded.stride_px:
        rule = f"must be at least {loaded.stride_px} pixels, or 0 for the whole picture at once"
        raise ConfigError(f"--tile: {options.tile}: {rule}")
    predictor = Predictor(loaded, nms, _device(options.device), options.tile, options.overlap)
    try:
        folder = PredictionFolder(_fresh(options.output), loaded.class_names)
        _predict(predictor, files, folder, unread)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"--output: {options.output}: cannot be written ({error.strerror}): make room, or choose another"
        raise ConfigError(message) from error
    print(f"{len(folder.images)} pictures, {len(folder.annotations)} objects: {folder.folder}")
    if unread:
        what = f"{len(unread)} of the files or folders could not be read"
        raise DataError(f"--source: {what}: see the warnings above; {folder.folder} holds what was found in the others")
    return folder.folder


def _skip(unread: list[DataError], error: DataError) -> None:
    unread.append(error)
    print(f"warning: {error}", file=sys.stderr)


def _predict(predictor: Predictor, files: list[Path], folder: PredictionFolder, unread: list[DataError]) -> None:
    """Write the results and print one line per picture; the JSON file is also written if an error ends this early."""
    width = shutil.get_terminal_size((SHOWN_COLUMNS, 24)).columns
    try:
        for frame in read_frames(files, partial(_skip, unread)):
            found = predictor.detect(frame.image)
            folder.add(frame, found)
            print(summary_line(frame.stem, found.classes.tolist(), folder.class_names, width))
    finally:
        folder.close()


def _check(options: argparse.Namespace) -> NmsConfig:
    if not 0 <= options.overlap < 1:
        raise ConfigError(f"--overlap: {options.overlap}: must be at least 0 and below 1")
    if options.tile < 0:
        raise ConfigError(f"--tile: {options.tile}: must not be negative")
    return nms_config(options, multi_label=False)


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python -m engine.predict", description=__doc__.splitlines()[0])
    add_checkpoint_option(parser)
    what = "pictures, folders, list files (.txt), glob patterns and videos"
    parser.add_argument("--source", nargs="+", required=True, type=path_text("--source"), help=what)
    parser.add_argument(
        "--output", type=path_option("--output"), default=Path("runs/predict"), help="default: %(default)s"
    )
    parser.add_argument("--tile", type=int, default=0, help="side of tiles in pixels; 0: the whole picture at once")
    parser.add_argument("--overlap", type=float, default=0.2, help="of tiles, as a share of one; default: %(default)s")
    add_nms_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1; default: %(default)s")
    return parser.parse_args(args)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if name.partition(":")[0] not in DEVICES:  # such as meta, which computes nothing
            raise RuntimeError("is none of " + ", ".join(DEVICES))
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name}: is not available here ({reason}): use auto or cpu") from error


def _fresh(folder: Path) -> Path:
    """Return the folder, or ``-2``, ``-3``, ... if it has content.

    Raises:
        ConfigError: If it has content, and no name to append a number to.
        OSError: If it is a file.
    """
    return next(one for one in numbered(folder, "--output") if not one.exists() or not any(one.iterdir()))


if __name__ == "__main__":
    run_command(main)
