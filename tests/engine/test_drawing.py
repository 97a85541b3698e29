from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageColor

from engine.drawing import _free_place, _overlaps, draw_detections
from engine.report.style import class_colour
from models.postprocess import Detections


def found(boxes: list[list[float]]) -> Detections:
    count = len(boxes)
    return Detections(torch.tensor(boxes).view(-1, 4), torch.linspace(0.9, 0.5, count), torch.arange(count) % 3)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (320, 240), (640, 640), (3000, 4000)])
def test_draw__enlarges_small_pictures_and_leaves_the_original(height: int, width: int) -> None:
    image = np.full((height, width, 3), 50, np.uint8)
    drawn = draw_detections(image, found([[10.0, 10, 40, 40]]), ["a", "b", "c"])
    factor = drawn.shape[1] / width
    assert max(drawn.shape) >= 640 and factor == drawn.shape[0] / height == int(factor)
    assert (image == 50).all()
    assert tuple(drawn[round(40 * factor), round(25 * factor)]) == ImageColor.getrgb(class_colour(0))


def test_draw__any_box_and_any_letters() -> None:
    """Outside, inside out, without area, and names that the font may not have."""
    boxes = [[-50.0, -50, 900, 900], [30, 30, 20, 20], [5, 5, 5, 5], [2000, 2000, 2100, 2100]]
    drawn = draw_detections(np.zeros((100, 100, 3), np.uint8), found(boxes), ["부품", "a" * 300, "ü"])
    assert drawn.any()


def test_draw__nothing_found_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, found([]), ["a"]), image)


def test_free_place__covers_no_label_and_no_box_where_it_can() -> None:
    box, size, frame = np.array([50.0, 50, 90, 90]), (30.0, 10.0), (200, 200)
    above = _free_place(box, size, frame, [], [list(box)])
    assert above == (50, 40, 80, 50)
    second = _free_place(box, size, frame, [above, (60, 40, 90, 50)], [list(box)])
    assert second[1] == 90 and not _overlaps(second, above)
    over_a_box = _free_place(box, size, frame, [], [list(box), [0, 0, 200, 50]])
    assert over_a_box[1] == 90
    assert _free_place(box, size, frame, [(0, 0, 200, 200)], [list(box)]) is None
