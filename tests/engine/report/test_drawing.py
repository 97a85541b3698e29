from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageColor

from engine.report.drawing import _free_place, draw_detections
from engine.report.style import class_color
from models.detection.postprocess import Detections


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
    assert tuple(drawn[round(40 * factor), round(25 * factor)]) == ImageColor.getrgb(class_color(0))


def test_draw__any_box_and_any_letters() -> None:
    """Outside, inside out, without area, and names that the font may not have."""
    boxes = [[-50.0, -50, 900, 900], [30, 30, 20, 20], [5, 5, 5, 5], [2000, 2000, 2100, 2100]]
    drawn = draw_detections(np.zeros((100, 100, 3), np.uint8), found(boxes), ["부품", "a" * 300, "ü"])
    assert drawn.any()


def test_draw__nothing_found_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, found([]), ["a"]), image)


BOARDS = {"green": "#165a30", "dark": "#14181c", "white": "#f4f4f0", "blue": "#10307a", "slate": "#57606a"}


@pytest.mark.parametrize("ground", BOARDS.values(), ids=BOARDS)
def test_draw__every_box_stands_out_from_its_board(ground: str) -> None:
    """Of frame and rim, one has the contrast of 3 to 1 with the ground that WCAG asks for, and they have it, too."""
    rgb = np.array(ImageColor.getrgb(ground), np.uint8)
    image = np.broadcast_to(rgb, (700, 700, 3)).copy()
    for c in range(40):
        drawn = draw_detections(image, Detections(torch.tensor([[200.0, 200, 400, 400]]), torch.ones(1) / 2,
                                                  torch.tensor([c])), [str(c) for c in range(40)])  # fmt: skip
        across = drawn[300, 190:210]  # through the left side, far from the name
        line = {tuple(pixel) for pixel in across} - {tuple(rgb)}
        assert len(line) == 2
        assert contrast(*line) >= 4.5
        assert max(contrast(tuple(rgb), color) for color in line) >= 3


def contrast(one: tuple, other: tuple) -> float:
    """As WCAG 2 defines it."""
    light = []
    for color in (one, other):
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.array(color) / 255]
        light.append(0.05 + float(np.dot([0.2126, 0.7152, 0.0722], linear)))
    return max(light) / min(light)


def crowd(step: int) -> Detections:
    xs, ys = np.meshgrid(np.arange(20, 960, step), np.arange(20, 960, step))
    boxes = torch.tensor(np.stack([xs, ys, xs + 20, ys + 16], -1).reshape(-1, 4)).float()
    return Detections(boxes, torch.linspace(0.9, 0.3, len(boxes)), torch.arange(len(boxes)) % 3)


def test_draw__names_of_a_crowd_give_way_to_a_legend() -> None:
    """Between the boxes of a crowded board one sees the board; what the colors mean stands below it."""
    image = np.full((1000, 1000, 3), (20, 90, 50), np.uint8)
    names = ["resistor", "capacitor", "inductor"]
    drawn = draw_detections(image, crowd(40), names, has_legend=True)
    between = drawn[:1000][39:960:40]  # rows without a box
    assert (between == image[0, 0]).all()
    assert drawn.shape[0] > 1000 and (drawn[1000:] == 255).all(axis=2).mean() > 0.5
    for c in range(3):
        assert (drawn[1000:] == ImageColor.getrgb(class_color(c))).all(axis=2).sum() > 50
    assert draw_detections(image, crowd(40), names).shape == image.shape  # a frame of a video
    assert draw_detections(image, crowd(300), names, has_legend=True).shape == image.shape  # all names have room


def test_draw__a_name_without_room_loses_its_score_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr("engine.report.drawing.Labels.write", lambda _, text, *args: tried.append(text))
    draw_detections(np.zeros((700, 700, 3), np.uint8), found([[10.0, 10, 90, 90]]), ["ic"])
    assert tried == ["ic 0.90", "ic"]


def test_free_place__hides_no_small_box() -> None:
    box, size, frame = np.array([50.0, 50, 90, 90]), (30.0, 10.0), (200, 200)
    around = [[50, 38, 90, 50], [50, 90, 90, 102], list(box)]
    assert _free_place(box, size, frame, [], around) == (50, 50, 80, 60)  # inside, a fifth of its own box
    assert _free_place(box, (39.0, 21.0), frame, [], around) is None


@pytest.mark.parametrize("name", ["", "a\nb", "\t", "😀", "\ud800", "$x$ $", "_a", "x" * 5000, "부품\r\n", "\x00"])
def test_draw__any_name(name: str) -> None:
    image = np.zeros((700, 700, 3), np.uint8)
    assert draw_detections(image, found([[50.0, 50, 300, 300]]), [name, "b", "c"], has_legend=True).any()


def test_free_place__covers_no_label_and_no_box_where_it_can() -> None:
    box, size, frame = np.array([50.0, 50, 90, 90]), (30.0, 10.0), (200, 200)
    above = _free_place(box, size, frame, [], [list(box)])
    assert above == (50, 40, 80, 50)
    second = _free_place(box, size, frame, [above, (60, 40, 90, 50)], [list(box)])
    assert second[1] == 90  # below the box, where neither of the names is
    over_a_box = _free_place(box, size, frame, [], [list(box), [0, 0, 200, 50]])
    assert over_a_box[1] == 90
    assert _free_place(box, size, frame, [(0, 0, 200, 200)], [list(box)]) is None
