from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.formats.image import read_image
from engine.errors import ConfigError
from engine.inference.results import PredictionFolder, summary_line
from engine.inference.sources import Frame
from models.detection.postprocess import Detections


def test_folder__rejects_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path / "out", ["a"])
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    frame = Frame(np.zeros((640, 640, 3), np.uint8), Path("a.webm"), "a_000001", 1, 90000.0)
    with pytest.raises(
        ConfigError, match=r"--source: a\.webm: cannot be written as MPEG-4 \(640 x 640 pixels at 90000"
    ):
        folder.add(frame, nothing)


def test_summary_line__most_frequent_first_within_the_terminal() -> None:
    names = ["ic", "a very long name of a class that nobody would print whole", "", "전해 커패시터", *"abcdefgh"]
    line = summary_line("board", [0] * 9 + [1] * 12 + [2, 3, 3], names, 120)
    assert line == "board: 12 a very long…print whole, 9 ic, 2 전해 커패시터, 1 class 2"
    for width in range(60, 120):
        line = summary_line("p" * 300, [c for c in range(len(names)) for _ in range(c + 1)], names, width)
        assert sum(1 + (ord(c) > 0x1000 and c != "…") for c in line) <= width
        assert line.endswith(("more class", "more classes")) and "12 h" in line
    assert summary_line("a\nb", [], names, 80) == "a\\nb: nothing"


def test_folder__writes_what_jpeg_cannot_hold_as_png(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path / "out", ["a"])
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    folder.add(Frame(np.zeros((2, 66_000, 3), np.uint8), Path("a.bmp"), "a"), nothing)
    assert read_image(tmp_path / "out" / "a.png").shape == (2, 66_000, 3)
