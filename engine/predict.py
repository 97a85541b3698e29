"""Find objects in pictures and videos: ``python -m engine.predict --ckpt_path best.ckpt --source FOLDER``.

Writes a copy of each picture with boxes, ``labels/NAME.txt`` in YOLO's form, and ``predictions.json`` in COCO's.
With ``--tile 640`` large pictures are looked at piece by piece. What cannot be read is named and passed over; the exit
status is 0, or 2 if that happened or nothing was done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from data.errors import DataError
from engine.command_line.arguments import CommandParser, path_option, path_text
from engine.errors import ConfigError, run_command
from engine.inference.predictor import Predictor
from engine.inference.results import PredictionFolder, summary_line
from engine.inference.sources import find_files, read_frames
from engine.run.checkpoint import EXAMPLE, load_network
from models.detection.postprocess import NmsConfig

SHOWN_COLUMNS = 120  # where the output is no terminal
DEVICES = ("cpu", "cuda", "mps", "xpu")


def main(args: list[str] | None = None) -> Path:
    """Predict as the command line says; returns the folder of the results.

    Raises:
        ConfigError: If an option is wrong, or the results cannot be written.
        DataError: At the end, if a picture could not be read; the results of the others are there.
    """
    options = _parse(args)
    nms = _check(options)
    unread = Unread()
    files = find_files(*options.source, on_error=unread.add)
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
    unread.raise_if_any(folder.folder)
    return folder.folder


class Unread:
    """What could not be read: each is named in a warning at once, all are counted at the end."""

    def __init__(self) -> None:
        self.num_files = 0

    def add(self, error: DataError) -> None:
        """Name one; the others go on."""
        self.num_files += 1
        print(f"warning: {error}", file=sys.stderr)

    def raise_if_any(self, folder: Path) -> None:
        """End with the exit status of an error, although the rest is done.

        Raises:
            DataError: If there were some.
        """
        if self.num_files:
            what = f"{self.num_files} of the files or folders could not be read"
            raise DataError(f"--source: {what}: see the warnings above; {folder} holds what was found in the others")


def _predict(predictor: Predictor, files: list[Path], folder: PredictionFolder, unread: Unread) -> None:
    """Write, and say in a line each, what is in the pictures; the JSON file also if this ends early."""
    width = shutil.get_terminal_size((SHOWN_COLUMNS, 24)).columns
    try:
        for frame in read_frames(files, unread.add):
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
    try:
        return NmsConfig(options.conf, options.iou, multi_label=False, max_detections=options.max_detections)
    except ValueError as error:
        message = str(error).replace("nms.confidence", "nms.conf")
        raise ConfigError(message.replace("model.nms.", "--")) from error


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="python -m engine.predict", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt_path", type=path_option("--ckpt_path"), required=True, help=f"such as {EXAMPLE}; or an Ultralytics .pt"
    )
    what = "pictures, folders, list files (.txt), glob patterns and videos"
    parser.add_argument("--source", nargs="+", required=True, type=path_text("--source"), help=what)
    parser.add_argument(
        "--output", type=path_option("--output"), default=Path("runs/predict"), help="default: %(default)s"
    )
    parser.add_argument("--tile", type=int, default=0, help="side of tiles in pixels; 0: the whole picture at once")
    parser.add_argument("--overlap", type=float, default=0.2, help="of tiles, as a share of one; default: %(default)s")
    parser.add_argument("--conf", type=float, default=0.25, help="least score; default: %(default)s")
    parser.add_argument("--iou", type=float, default=NmsConfig.iou, help="greatest overlap; default: %(default)s")
    parser.add_argument("--max_detections", type=int, default=1000, help="in a picture; default: %(default)s")
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
        raise ConfigError(f"--device: {name}: not to be had here ({reason}): use auto or cpu") from error


def _fresh(folder: Path) -> Path:
    """The folder, or ``-2``, ``-3``, ... if there is something in it.

    Raises:
        ConfigError: If there is, and it has no name of its own, as ``.`` and ``/``.
        OSError: If it is no folder.
    """
    fresh, number = folder, 1
    while fresh.exists() and any(fresh.iterdir()):
        if folder.name in ("", ".."):
            raise ConfigError(f"--output: {folder}: is not empty: choose another folder")
        number += 1
        fresh = folder.with_name(f"{folder.name}-{number}")
    return fresh


if __name__ == "__main__":
    run_command(main)
