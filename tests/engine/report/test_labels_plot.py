"""``labels.png``: sizes are those that the network sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from engine.report.labels_plot import draw_labels
from tests.engine.report.test_names import Index


def test_draw_labels__sizes_are_in_pixels_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 200 x 100 becomes 640 x 320, so that its box of 0.3 x 0.2 becomes 192 x 64 pixels."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    boxes = np.array([[0.1, 0.1, 0.4, 0.3]], np.float32)
    sizes = np.array([[100, 200]])
    index = Index(classes=np.zeros(1, int), boxes_xyxy_rel=boxes, box_offsets=np.array([0, 1]), sizes_hw=sizes)
    draw_labels(index, ["ic"], 640, "train", tmp_path / "labels.png")
    axes = next(axes for axes in figures[0].axes if axes.get_title(loc="left") == "Sizes of the boxes")
    counts = axes.collections[0].get_array()
    (row,), (column,) = np.nonzero(~np.ma.getmaskarray(counts))
    edges = np.geomspace(1, 640, counts.shape[0] + 1)
    assert edges[column] <= 192 < edges[column + 1] and edges[row] <= 64 < edges[row + 1]
