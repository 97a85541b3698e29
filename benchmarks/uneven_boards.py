"""Draw images with 1 to about 60 objects: a part of a board, a whole board, or four boards.

They show how training treats images with few objects in a batch with crowded images.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

from data.boards.drawing import CLASS_NAMES, draw_board

MIN_VISIBLE = 0.5
"""Boxes with a smaller share of their area inside the image are removed."""
Picture = tuple[np.ndarray, np.ndarray, np.ndarray]
"""uint8 (H, W, 3) in RGB; float32 (n, 4) corner boxes in pixels; int64 (n,) classes."""


def write_uneven_boards(folder: Path, num_train: int, num_val: int, image_size: int) -> Path:
    """Write a data set in YOLO's format; return its ``data.yaml``. The same arguments give the same images."""
    for split, (name, count) in enumerate((("train", num_train), ("val", num_val))):
        for kind in ("images", "labels"):
            (folder / kind / name).mkdir(parents=True)
        for number in range(count):
            image, boxes, classes = draw_uneven(np.random.default_rng([split, number]), image_size)
            cv2.imwrite(str(folder / "images" / name / f"{number:05d}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            centers_and_sizes = np.concatenate([boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])], 1) / 2
            rows = zip(classes, centers_and_sizes / image_size, strict=True)
            text = "".join(f"{c} {' '.join(f'{value:.6f}' for value in row)}\n" for c, row in rows)
            (folder / "labels" / name / f"{number:05d}.txt").write_text(text)
    description = {"path": ".", "train": "images/train", "val": "images/val", "names": list(CLASS_NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder / "data.yaml"


def draw_uneven(rng: np.random.Generator, image_size: int) -> Picture:
    """Draw a part of a board, a whole board or four boards, with equal probability."""
    draw = (_part_of_a_board, draw_board, _four_boards)[rng.integers(3)]
    return draw(rng, image_size)


def _part_of_a_board(rng: np.random.Generator, image_size: int) -> Picture:
    """Draw a sixteenth of a board's area, with at least one object."""
    image, boxes, classes = draw_board(rng, 4 * image_size)
    for _ in range(100):
        x, y = rng.integers(0, 3 * image_size, 2)
        moved = boxes - np.array([x, y, x, y], np.float32)
        inside = moved.clip(0, image_size)
        visible = np.prod(inside[:, 2:] - inside[:, :2], axis=1) > MIN_VISIBLE * np.prod(
            boxes[:, 2:] - boxes[:, :2], axis=1
        )
        if visible.any():
            return image[y : y + image_size, x : x + image_size], inside[visible], classes[visible]
    return draw_board(rng, image_size)


def _four_boards(rng: np.random.Generator, image_size: int) -> Picture:
    half = image_size // 2
    boards = [draw_board(rng, image_size) for _ in range(4)]
    image = np.zeros((image_size, image_size, 3), np.uint8)
    boxes = []
    for (x, y), (board, own, _) in zip(((0, 0), (half, 0), (0, half), (half, half)), boards, strict=True):
        image[y : y + half, x : x + half] = cv2.resize(board, (half, half), interpolation=cv2.INTER_AREA)
        boxes.append(own / 2 + np.array([x, y, x, y], np.float32))
    return image, np.concatenate(boxes), np.concatenate([classes for _, _, classes in boards])
