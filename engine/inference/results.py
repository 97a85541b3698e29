"""The results of a prediction: images with boxes, label files, one JSON file, and a line for each image."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from engine.errors import ConfigError
from engine.inference.sources import RESULTS, Frame
from engine.report.drawing import draw_detections
from engine.report.style import without_middle
from models.detection.postprocess import Detections

MAX_JPEG_SIDE_PX = 65_500  # limit of libjpeg
MAX_NAME_COLUMNS = 24


class PredictionFolder:
    """Writes images with boxes and label files, and one JSON file at the end."""

    def __init__(self, folder: Path, class_names: list[str]) -> None:
        self.folder = folder
        self.class_names = class_names
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.video: tuple[Path, cv2.VideoWriter] | None = None
        (folder / "labels").mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, found: Detections) -> None:
        """Write the detections of one frame."""
        height, width = frame.image.shape[:2]
        has_legend = frame.number is None  # all frames of a video have the same size
        drawn = cv2.cvtColor(draw_detections(frame.image, found, self.class_names, has_legend), cv2.COLOR_RGB2BGR)
        if frame.number is None:
            is_png = frame.path.suffix.lower() == ".png" or max(drawn.shape) > MAX_JPEG_SIDE_PX
            suffix, how = (".png", []) if is_png else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92])
            content = cv2.imencode(suffix, drawn, how)[1]
            (self.folder / f"{frame.stem}{suffix}").write_bytes(content)  # under Windows, imwrite refuses some names
        else:
            self._write_frame(frame, drawn)
        image_id = len(self.images) + 1
        about = {"id": image_id, "file_name": str(frame.path), "width": width, "height": height}
        self.images.append(about if frame.number is None else about | {"frame": frame.number})
        lines = []
        boxes, classes, scores = found.boxes_xyxy_px.tolist(), found.classes.tolist(), found.scores.tolist()
        for (x1, y1, x2, y2), c, score in zip(boxes, classes, scores, strict=True):
            w, h = x2 - x1, y2 - y1
            center = f"{(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f}"
            lines.append(f"{c} {center} {w / width:.6f} {h / height:.6f} {score:.6f}\n")
            box = [round(x1, 3), round(y1, 3), round(w, 3), round(h, 3)]
            annotation = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": c, "bbox": box}
            annotation |= {"area": round(w * h, 3), "iscrowd": 0, "score": round(score, 6)}
            self.annotations.append(annotation)
        (self.folder / "labels" / f"{frame.stem}.txt").write_text("".join(lines))

    def close(self) -> None:
        """Complete the last video and write the JSON file."""
        if self.video is not None:
            self.video[1].release()
        categories = [{"id": c, "name": name} for c, name in enumerate(self.class_names)]
        content = {"images": self.images, "categories": categories, "annotations": self.annotations}
        text = json.dumps(content, ensure_ascii=False)
        # File names may have bytes that are not UTF-8; they become escapes, which JSON can read.
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
                raise ConfigError(f"--source: {frame.path}: {rule}. Give its frames as images.")
        self.video[1].write(drawn)


def summary_line(image: str, classes: list[int], class_names: list[str], width: int) -> str:
    """A line with the number of objects of each class, the most frequent class first.

    Args:
        image: Name of the image.
        classes: Class of each object.
        class_names: By class id.
        width: Most columns of the line. The name and one class are always written.
    """
    counts = Counter(classes).most_common()
    line = f"{_printable(image, max(width // 2, 20))}: {'' if counts else 'nothing'}"
    for i, (c, count) in enumerate(counts):
        part = f"{', ' if i else ''}{count} {_printable(class_names[c], MAX_NAME_COLUMNS) or f'class {c}'}"
        left = len(counts) - i
        if i and _num_columns(line + part + (f" and {left - 1} more classes" if left > 1 else "")) > width:
            return f"{line} and {left} more class{'es' if left > 1 else ''}"
        line += part
    return line


def _printable(text: str, most: int) -> str:
    """A name on one line, with escapes for characters that cannot be printed, and without its middle if it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
    return without_middle(text, lambda shown: _num_columns(shown) <= most)


def _num_columns(text: str) -> int:
    """The columns that a text needs on a terminal, where Asian letters are two columns wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
