"""Pictures with boxes, and what counts as a mistake in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.report import style
from engine.report.mistakes import FALSE, MISSED, RIGHT, ImageRecord, collect_records, judge
from engine.report.pictures import TILE_PX, Mark, Tile, draw_found, draw_mistakes, draw_truth, save_sheet
from engine.report.style import drawable_names, font_file
from tests.helpers.results import make_metrics, make_pictures

NAMES = ["ic", "led", "diode"]


def record(detections: list[list[float]], truth: list[list[float]], path: str = "x.png") -> ImageRecord:
    found, true = (np.array(rows, np.float32) for rows in (detections, truth))
    return ImageRecord(path, found.reshape(-1, 6), true.reshape(-1, 5))


BOX, FAR = [10, 10, 50, 50], [100, 100, 150, 150]


@pytest.mark.parametrize(
    ("detections", "truth", "kinds"),
    [
        ([[*BOX, 0, 0.9]], [[*BOX, 0]], [RIGHT]),
        ([[*BOX, 1, 0.9]], [[*BOX, 0]], [FALSE, MISSED]),  # another class
        ([[*BOX, 0, 0.9]], [[*FAR, 0]], [FALSE, MISSED]),
        ([[*BOX, 0, 0.2]], [[*BOX, 0]], [MISSED]),  # not confident enough
        ([[*BOX, 0, 0.9], [*BOX, 0, 0.8]], [[*BOX, 0]], [RIGHT, FALSE]),  # found twice
        ([], [], []),
    ],
)
def test_judge__tells_right_from_wrong(detections: list, truth: list, kinds: list[str]) -> None:
    verdict = judge(record(detections, truth), confidence=0.25)
    assert sorted(item.kind for item in verdict.items) == sorted(kinds)
    assert (verdict.num_missed, verdict.num_false) == (kinds.count(MISSED), kinds.count(FALSE))


def test_judge__severity_counts_missed_boxes_and_the_confidence_of_false_detections() -> None:
    verdict = judge(record([[*BOX, 1, 0.75]], [[*FAR, 0], [*BOX, 0]]), confidence=0.25)
    assert verdict.severity == pytest.approx(2 + 0.75)


def test_collect_records__splits_the_metrics_image_by_image() -> None:
    metrics = make_metrics(NAMES, num_images=7)
    records = collect_records(metrics, [f"{i}.png" for i in range(7)])
    assert [len(item.truth) for item in records] == [6] * 7
    assert np.array_equal(records[3].detections.ravel(), metrics.detections[3].numpy())
    with pytest.raises(ValueError, match="7 images in the metrics, 6 paths"):
        collect_records(metrics, ["x"] * 6)


def test_draw_mistakes__worst_first_and_none_without_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_pictures(tmp_path, 3)
    fine = record([[*BOX, 0, 0.9]], [[*BOX, 0]], paths[0])
    bad = record([[*BOX, 1, 0.9]], [[*FAR, 0]], paths[1])
    worse = record([], [[*BOX, 0], [*FAR, 1], [*FAR, 2]], paths[2])
    sheets = []
    monkeypatch.setattr("engine.report.pictures.save_sheet", lambda tiles, *args: sheets.append(tiles))
    assert draw_mistakes([fine, bad, worse], NAMES, 0.25, tmp_path / "m.jpg") == 2
    assert [tile.caption for tile in sheets[0]] == ["3 missed, 0 false: image 2.png", "1 missed, 1 false: image 1.png"]
    assert draw_mistakes([fine], NAMES, 0.25, tmp_path / "m.jpg") == 0
    assert len(sheets) == 1


def test_draw_truth_and_found__continue_without_a_file(tmp_path: Path) -> None:
    gone = record([[*BOX, 0, 0.9]], [[*BOX, 0]], str(tmp_path / "gone.png"))
    draw_truth([gone], NAMES, 0.25, tmp_path / "val_batch0_labels.jpg")
    draw_found([gone], NAMES, 0.25, tmp_path / "val_batch0_pred.jpg")
    assert {path.name for path in tmp_path.iterdir()} == {"val_batch0_labels.jpg", "val_batch0_pred.jpg"}


def test_save_sheet__draws_the_box_in_its_place_and_color(tmp_path: Path) -> None:
    image = np.full((200, 100, 3), 255, np.uint8)  # portrait: centered in its square, drawn at twice its size
    tile = Tile(image, "x", [Mark(np.array([10, 10, 90, 190]), "", "#0000ff")])
    save_sheet([tile], tmp_path / "sheet.jpg", {})
    pixels = np.asarray(Image.open(tmp_path / "sheet.jpg")).astype(int)[4:, 4:]
    left = (TILE_PX - 200) // 2 + 20
    assert pixels[200, left, 2] > 150 > pixels[200, left, 0]  # blue
    assert pixels[200, left + 20].min() > 240  # white inside


def test_save_sheet__legend_of_many_classes_takes_more_rows(tmp_path: Path) -> None:
    tile = Tile(np.full((50, 50, 3), 255, np.uint8), "x")
    sizes = []
    for num_classes in (0, 2, 12):
        legend = {f"a rather long name {c}": "#0000ff" for c in range(num_classes)}
        save_sheet([tile], tmp_path / "sheet.jpg", legend)
        sizes.append(Image.open(tmp_path / "sheet.jpg").size)
    assert {width for width, _ in sizes} == {TILE_PX + 8}  # nothing runs out of the picture
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]


@pytest.mark.parametrize("box", [[-50, -50, 500, 500], [0, 0, 0, 0], [199, 199, 199, 199]])
def test_save_sheet__takes_any_box_and_text(tmp_path: Path, box: list[float]) -> None:
    tile = Tile(np.zeros((200, 3, 3), np.uint8), "c" * 300, [Mark(np.array(box), "n" * 300, "#ffffff")])
    save_sheet([tile], tmp_path / "sheet.jpg", {})
    assert Image.open(tmp_path / "sheet.jpg").size[0] > TILE_PX


def test_drawable_names__take_the_number_where_no_font_has_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    base = style.font_files()[0]
    monkeypatch.setattr(style, "font_files", lambda: (base,))
    assert drawable_names(["ic", "저항", "größe"]) == ["ic", "class 1", "größe"]
    assert font_file("ic") == base
