"""Names of classes and files that cannot be drawn as they are, in every chart: none ends it, none is mathematics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from data.indexing.dataset_facts import DatasetFacts
from engine.report import dataset_pictures, style
from engine.report.curves import curve_pictures
from engine.report.labels_plot import draw_labels
from engine.report.results_plots import draw_results, read_history
from engine.report.style import drawable_names, drawable_text, drawing
from tests.helpers.report import write_history
from tests.helpers.results import make_metrics, make_pictures

NAMES = ["ic", "전해 커패시터", "🧲", "a\nb", "", "$x$", "$\\frac$", "_hidden", "n" * 300, "\ud800", "\x00", "{x}"]
COUNTS = np.array([100_000, *[3] * (len(NAMES) - 1)])


class Index(SimpleNamespace):
    """As much of an `ImageIndex` as pictures need: one image that holds an object of each class."""

    def __len__(self) -> int:
        return 1

    def path(self, image: int) -> str:
        return self.file

    def labels(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        return self.boxes_xyxy_rel[: len(NAMES)], np.arange(len(NAMES))


def make_index(folder: Path) -> Index:
    file = folder / "부품 $x$ 🧲.png"
    Path(make_pictures(folder, 1)[0]).rename(file)
    classes = np.repeat(np.arange(len(NAMES)), COUNTS)
    boxes = np.tile(np.array([[0.1, 0.1, 0.4, 0.3]], np.float32), (len(classes), 1))
    sizes = np.array([[200, 200]])
    return Index(
        file=str(file), classes=classes, boxes_xyxy_rel=boxes, box_offsets=np.array([0, len(boxes)]), sizes_hw=sizes
    )


@pytest.fixture(autouse=True)
def base_font_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Asian fonts."""
    base = style.font_files()[0]
    monkeypatch.setattr(style, "font_files", lambda: (base,))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """All that is written in the charts of a test; a glyph that is missing would be a warning."""
    found: list[str] = []
    save = Figure.savefig

    def noting(figure: Figure, *args: object, **options: object) -> None:
        save(figure, *args, **options)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", noting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield found


def assert_plain(texts: list[str]) -> None:
    """Class names are there as they are or as numbers; no tick speaks TeX."""
    assert not [text for text in texts if "mathdefault" in text or "\\times" in text]
    assert any("$x$" in text for text in texts) and any("_hidden" in text for text in texts)
    assert any("class 1" in text for text in texts) and any("a b" in text for text in texts)


def test_curves_and_matrices__any_name(texts: list[str], tmp_path: Path) -> None:
    results = make_metrics(NAMES, num_images=20).compute()
    for name, draw in curve_pictures(results).items():
        texts.clear()
        with drawing():
            draw(tmp_path / name)
        assert (tmp_path / name).is_file()
        assert_plain(texts)


def test_labels_and_results__plain_numbers_on_logarithmic_axes(texts: list[str], tmp_path: Path) -> None:
    with drawing():
        draw_labels(make_index(tmp_path), NAMES, 640, "train", tmp_path / "labels.png")
        assert_plain(texts)
        assert "100,000" in texts and "1,000" in texts
        write_history(tmp_path / "metrics.csv", num_epochs=3)
        draw_results(read_history(tmp_path / "metrics.csv"), tmp_path / "results.png")
    assert not [text for text in texts if "mathdefault" in text]


def make_facts() -> DatasetFacts:
    facts = DatasetFacts.__new__(DatasetFacts)
    for name, value in {"names": tuple(NAMES), "image_size": 640}.items():
        object.__setattr__(facts, name, value)
    return facts


def test_dataset_pictures__any_name_and_plain_numbers(texts: list[str], tmp_path: Path) -> None:
    files = dataset_pictures.write_pictures(tmp_path, make_facts(), {"train": make_index(tmp_path)})
    assert {file.name for file in files} == {"labels_train.png", "examples_train.png"}
    assert_plain(texts)
    assert "10,000" in texts  # a tick of the classes


def test_dataset_pictures__one_that_fails_is_a_line_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr(dataset_pictures, "draw_labels", fail)
    with caplog.at_level(logging.WARNING):
        files = dataset_pictures.write_pictures(tmp_path, make_facts(), {"train": make_index(tmp_path)})
    assert {file.name for file in files} == {"examples_train.png"}
    (message,) = caplog.messages
    assert "labels_train.png: cannot be drawn (ValueError: no such glyph). The other pictures" in message


def test_drawable_names__one_line_and_never_empty() -> None:
    expected = ["ic", "class 1", "class 2", "a b", "class 4", "$x$", "$\\frac$", " _hidden", "n" * 300]
    assert drawable_names(NAMES) == [*expected, "class 9", "class 10", "{x}"]
    assert drawable_text("부품 a\n.png") == "\ufffd\ufffd a .png"


def test_font_files__passes_over_a_damaged_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    broken = tmp_path / "NanumGothic.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(style.font_manager, "findSystemFonts", lambda: [str(broken)])
    assert len(style.font_files.__wrapped__()) == 1
