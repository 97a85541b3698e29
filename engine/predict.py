"""Find objects in pictures and videos: ``python -m engine.predict --ckpt_path best.ckpt --source FOLDER``.

Writes a copy of each picture with boxes, ``labels/NAME.txt`` in YOLO's form, and ``predictions.json`` in COCO's.
With ``--tile 640`` large pictures are looked at piece by piece. What cannot be read is named and passed over; the exit
status is 0, or 2 if that happened or nothing was done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch

from data.augmentation.letterbox import pad_centred, resize_long_side
from data.errors import DataError
from data.loading.batch import letterbox_geometry, to_original_px
from engine.command_line.arguments import CommandParser, path_option, path_text
from engine.errors import ConfigError, run_command
from engine.inference.sources import RESULTS, Frame, find_files, read_frames
from engine.inference.tiling import cover, merge, num_tiles
from engine.report.drawing import draw_detections
from engine.run.checkpoint import EXAMPLE, LoadedNetwork, load_network
from engine.validation.evaluation import predict_raw
from models.detection.boxes import decode_boxes
from models.detection.postprocess import Detections, NmsConfig, detections
from models.network import head_strides

MAX_BATCH = 8  # tiles in one forward pass
MIN_TILE_PX = 32  # a cell of the network's coarsest head
MAX_TILES = 10_000  # of a picture: 50,000 x 50,000 px in tiles of 640; more is a slip that would run for hours
MAX_JPEG_SIDE_PX = 65_500  # libjpeg's limit
SHOWN_COLUMNS = 120  # where the output is no terminal
MAX_NAME_COLUMNS = 24
DEVICES = ("cpu", "cuda", "mps", "xpu")


class Predictor:
    """A network that takes pictures of any size."""

    def __init__(
        self, loaded: LoadedNetwork, nms: NmsConfig, device: torch.device, tile_px: int = 0, overlap: float = 0.2
    ) -> None:
        """Put the network on its device.

        Args:
            loaded: The network.
            nms: Which predictions count.
            device: Where to run.
            tile_px: Side of the tiles in pixels of the picture; 0 looks at the picture as a whole.
            overlap: Of neighbouring tiles, as a share of a tile.
        """
        self.network = loaded.network.to(device)
        self.image_size = loaded.image_size
        self.nms = nms
        self.device = device
        self.tile_px = tile_px
        self.overlap = overlap

    def detect(self, image: np.ndarray) -> Detections:
        """What is in a picture, uint8 (height, width, 3) RGB; boxes in its pixels, on the CPU.

        Raises:
            ConfigError: If its tiles would be more than `MAX_TILES`.
        """
        height, width = image.shape[:2]
        if not self.tile_px:
            return self._detect_batch([image])[0]
        if (number := num_tiles(height, width, self.tile_px, self.overlap)) > MAX_TILES:
            rule = f"would look at {width} x {height} pixels in {number:,} pieces, more than {MAX_TILES:,}"
            raise ConfigError(f"--tile: {self.tile_px}: {rule}: give a larger --tile or a smaller --overlap")
        tiles = cover(height, width, self.tile_px, self.overlap)
        found: list[Detections] = []
        for start in range(0, len(tiles), MAX_BATCH):
            some = tiles[start : start + MAX_BATCH]
            found += self._detect_batch([image[t.top : t.bottom, t.left : t.right] for t in some])
        return merge(found, tiles, height, width, self.nms.iou, self.nms.limit)

    def _detect_batch(self, images: list[np.ndarray]) -> list[Detections]:
        squares, geometries = [], []
        for image in images:
            resized = resize_long_side(image, self.image_size)
            square, pad = pad_centred(resized, (self.image_size, self.image_size))
            squares.append(torch.from_numpy(square).permute(2, 0, 1))
            geometries.append(letterbox_geometry(image.shape[:2], resized.shape[:2], pad))
        predictions = predict_raw(self.network, torch.stack(squares).to(self.device), "fp32")
        boxes = decode_boxes(predictions, head_strides(self.network))
        found = detections(boxes, predictions["scores"], self.nms)
        return [
            Detections(to_original_px(one.boxes_xyxy_px.cpu(), geometry), one.scores.cpu(), one.classes.cpu())
            for one, geometry in zip(found, geometries, strict=True)
        ]


class PredictionFolder:
    """Writes pictures, label files and, at the end, one JSON file."""

    def __init__(self, folder: Path, class_names: list[str]) -> None:
        self.folder = folder
        self.class_names = class_names
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.video: tuple[Path, cv2.VideoWriter] | None = None
        (folder / "labels").mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, found: Detections) -> None:
        """Write what was found in one frame."""
        height, width = frame.image.shape[:2]
        has_legend = frame.number is None  # frames of a video have one size
        drawn = cv2.cvtColor(draw_detections(frame.image, found, self.class_names, has_legend), cv2.COLOR_RGB2BGR)
        if frame.number is None:
            is_png = frame.path.suffix.lower() == ".png" or max(drawn.shape) > MAX_JPEG_SIDE_PX
            suffix, how = (".png", []) if is_png else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92])
            content = cv2.imencode(suffix, drawn, how)[1]
            (self.folder / f"{frame.stem}{suffix}").write_bytes(content)  # any characters, also under Windows
        else:
            self._write_frame(frame, drawn)
        boxes, classes, scores = found.boxes_xyxy_px.tolist(), found.classes.tolist(), found.scores.tolist()
        lines = [
            f"{c} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f} {score:.6f}\n"
            for (x1, y1, x2, y2), c, score in zip(boxes, classes, scores, strict=True)
        ]
        (self.folder / "labels" / f"{frame.stem}.txt").write_text("".join(lines))
        image_id = len(self.images) + 1
        about = {"id": image_id, "file_name": str(frame.path), "width": width, "height": height}
        self.images.append(about if frame.number is None else about | {"frame": frame.number})
        for (x1, y1, x2, y2), c, score in zip(boxes, classes, scores, strict=True):
            box = [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)]
            annotation = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": c, "bbox": box}
            annotation |= {"area": round((x2 - x1) * (y2 - y1), 3), "iscrowd": 0, "score": round(score, 6)}
            self.annotations.append(annotation)

    def close(self) -> None:
        """Finish the video and write the JSON file."""
        if self.video is not None:
            self.video[1].release()
        categories = [{"id": c, "name": name} for c, name in enumerate(self.class_names)]
        content = {"images": self.images, "categories": categories, "annotations": self.annotations}
        text = json.dumps(content, ensure_ascii=False)
        # Bytes of a file name that are no UTF-8 become JSON's own escapes.
        (self.folder / RESULTS).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _write_frame(self, frame: Frame, drawn: np.ndarray) -> None:
        if self.video is None or self.video[0] != frame.path:
            if self.video is not None:
                self.video[1].release()
            path = self.folder / f"{frame.stem.rpartition('_')[0]}.mp4"
            size = drawn.shape[1], drawn.shape[0]
            self.video = frame.path, cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), frame.fps, size)
            if not self.video[1].isOpened():
                rule = f"cannot be written as MPEG-4 ({size[0]} x {size[1]} pixels at {frame.fps:g} frames a second)"
                raise ConfigError(f"--source: {frame.path}: {rule}: give its frames as pictures")
        self.video[1].write(drawn)


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


def summary_line(picture: str, classes: list[int], class_names: list[str], width: int) -> str:
    """What is in a picture: how many of each class, most frequent first, in at most ``width`` columns.

    Args:
        picture: Its name.
        classes: Of each object.
        class_names: By class number.
        width: Of the terminal; a name and one class have room in any case.
    """
    counts = Counter(classes).most_common()
    line = f"{_printable(picture, max(width // 2, 20))}: {'' if counts else 'nothing'}"
    for i, (c, count) in enumerate(counts):
        part = f"{', ' if i else ''}{count} {_printable(class_names[c], MAX_NAME_COLUMNS) or f'class {c}'}"
        left = len(counts) - i
        if i and _num_columns(line + part + (f" and {left - 1} more classes" if left > 1 else "")) > width:
            return f"{line} and {left} more class{'es' if left > 1 else ''}"
        line += part
    return line


def _printable(text: str, most: int) -> str:
    """A name in one line: what cannot be printed as an escape, and without its middle if it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
    shown, half = text, len(text) // 2
    while _num_columns(shown) > most and half > 1:
        half -= 1
        shown = f"{text[:half]}…{text[-half:]}"
    return shown


def _num_columns(text: str) -> int:
    """On a terminal, where Asian letters are two columns wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _check(options: argparse.Namespace) -> NmsConfig:
    if not 0 <= options.overlap < 1:
        raise ConfigError(f"--overlap: {options.overlap}: must be at least 0 and below 1")
    if options.tile < 0:
        raise ConfigError(f"--tile: {options.tile}: must not be negative")
    if 0 < options.tile < MIN_TILE_PX:
        rule = f"must be at least {MIN_TILE_PX} pixels, or 0 for the whole picture at once"
        raise ConfigError(f"--tile: {options.tile}: {rule}")
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
