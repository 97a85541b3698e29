"""Drawn boards: repeatable, correctly labeled, written all at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.boards.drawing import CLASS_NAMES, IC, Board, PlacedPart, _draw_parts, draw_board
from data.boards.parts import draw_capacitor, draw_header, draw_ic, draw_resistor
from data.boards.synthetic import SyntheticConfig, generate_pcb_dataset, main
from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.indexing.index import build_index

SMALL = SyntheticConfig(num_train=3, num_val=2, image_size=96)


def board(seed: int, image_size: int = 160) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw_board(np.random.default_rng(seed), image_size)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestDrawBoard:
    def test_follows_from_its_generator(self) -> None:
        for a, b in zip(board(1), board(1), strict=True):
            assert np.array_equal(a, b)
        assert not np.array_equal(board(1)[0], board(2)[0])

    def test_boxes_and_classes(self) -> None:
        seen: set[int] = set()
        for seed in range(30):
            image, boxes, classes = board(seed)
            assert image.shape == (160, 160, 3) and image.dtype == np.uint8
            assert boxes.shape == (len(classes), 4) and len(classes) >= 3
            assert ((boxes >= 0) & (boxes <= 160)).all() and (boxes[:, 2:] - boxes[:, :2] > 2).all()
            seen |= set(classes.tolist())
        assert seen == set(range(len(CLASS_NAMES)))

    def test_scales_with_the_image(self) -> None:
        """The plan is drawn from the same numbers, so boxes grow with the image, up to whole pixels."""
        small, large = board(3, 320), board(3, 640)
        count = min(len(small[2]), len(large[2]), 5)
        np.testing.assert_allclose(small[1][:count] * 2, large[1][:count], atol=6)

    @pytest.mark.parametrize("angle", [0.0, 90.0, 183.0])
    @pytest.mark.parametrize("draw", [draw_ic, draw_resistor, draw_capacitor])
    def test_boxes_are_tight(self, draw: object, angle: float) -> None:
        """On a black canvas, which hides shadows, the box bounds the drawn pixels."""
        for seed in range(4):
            rng = np.random.default_rng(seed)
            placed = PlacedPart(draw(rng, 20.0), IC, np.array([310.0, 290.0]), angle)
            planned = Board(rng, 600, 20.0, ((0, 0, 0), (0, 0, 0)), np.array([0, 0, 600, 600]), [placed])
            canvas = np.zeros((600, 600, 3), np.uint8)
            _draw_parts(planned, canvas)
            ((class_id, (x1, y1, x2, y2)),) = planned.objects
            drawn = canvas.any(axis=2)
            rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
            assert class_id == IC
            edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose([x1, y1, x2, y2], edges, atol=1)  # turning smooths the edges

    def test_labeled_boxes_of_parts_do_not_overlap(self) -> None:
        for seed in range(10):
            _, boxes, classes = board(seed, 320)
            parts = boxes[classes <= 2]
            for i, (x1, y1, x2, y2) in enumerate(parts):
                others = np.delete(parts, i, axis=0)
                width = np.minimum(others[:, 2], x2) - np.maximum(others[:, 0], x1)
                height = np.minimum(others[:, 3], y2) - np.maximum(others[:, 1], y1)
                assert not ((width > 1) & (height > 1)).any()


@pytest.mark.parametrize("draw", [draw_ic, draw_resistor, draw_capacitor, draw_header])
def test_parts__fit_their_layers_and_have_pins_at_the_edge(draw: object) -> None:
    for seed in range(10):
        part = draw(np.random.default_rng(seed), 20.0)
        height, width = part.flat.shape[:2]
        assert part.body.shape == part.flat.shape == (height, width, 4) and height % 2 == width % 2 == 1
        for x, y, nx, ny in part.pins:
            assert abs(x) <= width / 2 and abs(y) <= height / 2 and abs(nx) + abs(ny) == 1
        if draw is not draw_header:
            alpha = np.maximum(part.flat[..., 3], part.body[..., 3])
            assert set(np.unique(alpha)) <= {0, 255}
            assert not alpha[0].any() and not alpha[:, 0].any(), "cut off at the layer's border"


class TestGeneratePcbDataset:
    def test_writes_a_complete_data_set(self, tmp_path: Path) -> None:
        dataset = read_dataset_yaml(generate_pcb_dataset(tmp_path / "a" / "boards", SMALL))
        assert dataset.names == CLASS_NAMES
        train, val = build_index(dataset, "train"), build_index(dataset, "val")
        assert (len(train), len(val)) == (3, 2)
        image = cv2.imread(train.path(0))
        assert image.shape == (96, 96, 3)
        expected, boxes, classes = draw_board(np.random.default_rng([0, 0, 0]), 96)
        assert np.abs(image[..., ::-1].astype(int) - expected).mean() < 8  # JPEG
        np.testing.assert_allclose(train.labels(0)[0] * 96, boxes, atol=1e-3)
        assert train.labels(0)[1].tolist() == classes.tolist()

    def test_same_configuration_gives_the_same_files(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            generate_pcb_dataset(tmp_path / name, SMALL)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
        other = SyntheticConfig(num_train=3, num_val=2, image_size=96, seed=1)
        generate_pcb_dataset(tmp_path / "c", other)
        assert contents(tmp_path / "a")["images/train/00000.jpg"] != contents(tmp_path / "c")["images/train/00000.jpg"]

    def test_train_and_val_differ(self, tmp_path: Path) -> None:
        files = contents(generate_pcb_dataset(tmp_path / "a", SMALL).parent)
        images = [content for name, content in files.items() if name.endswith(".jpg")]
        assert len(images) == len(set(images)) == 5

    def test_png_is_lossless(self, tmp_path: Path) -> None:
        config = SyntheticConfig(num_train=1, num_val=1, image_size=96, image_format="png")
        generate_pcb_dataset(tmp_path / "a", config)
        image = cv2.imread(str(tmp_path / "a/images/val/00000.png"))[..., ::-1]
        assert np.array_equal(image, draw_board(np.random.default_rng([0, 1, 0]), 96)[0])

    def test_finished_folder_is_used_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        generate_pcb_dataset(folder, SMALL)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert generate_pcb_dataset(folder, SMALL) == folder / "data.yaml"
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        assert generate_pcb_dataset(tmp_path / "a", SMALL).is_file()

    def test_rejects_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match=r"x: cannot be written \(.+\)\. Make room, or choose another"):
            generate_pcb_dataset(tmp_path / "file" / "x", SMALL)

    def test_rejects_a_folder_with_a_stamp_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "synthetic.json").write_text("{")
        with pytest.raises(DataError, match="contains something else"):
            generate_pcb_dataset(tmp_path, SMALL)

    def test_rejects_a_folder_with_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "thesis.txt").write_text("precious")
        with pytest.raises(DataError, match=r"a: the folder contains something else than these boards\. Give another"):
            generate_pcb_dataset(tmp_path / "a", SMALL)
        assert contents(tmp_path) == {"a/thesis.txt": b"precious"}
        generate_pcb_dataset(tmp_path / "b", SMALL)
        with pytest.raises(DataError, match="contains something else"):
            generate_pcb_dataset(tmp_path / "b", SyntheticConfig(num_train=4, num_val=2, image_size=96))

    def test_interruption_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("data.boards.synthetic._label_text", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate_pcb_dataset(tmp_path / "a", SMALL)
        assert not list(tmp_path.iterdir())

    def test_slower_of_two_processes_uses_the_faster_ones_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "a"
        with monkeypatch.context() as patch:
            import data.boards.synthetic as synthetic

            write = synthetic._write_dataset

            def overtaken(scratch: Path, config: SyntheticConfig) -> None:
                patch.undo()
                generate_pcb_dataset(folder, config)
                write(scratch, config)

            patch.setattr(synthetic, "_write_dataset", overtaken)
            generate_pcb_dataset(folder, SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert json.loads((folder / "synthetic.json").read_text())["num_train"] == 3

    @pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
    def test_folder_is_readable_by_others(self, tmp_path: Path) -> None:
        generate_pcb_dataset(tmp_path / "a", SMALL)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num_train: 0: too small. Give 1 or more"),
        ({"num_val": -1}, "num_val: -1: too small. Give 1 or more"),
        ({"image_size": 32}, "image_size: 32: too small. Give 96 or more"),
        ({"seed": -1}, "seed: -1: too small. Give 0 or more"),
    ],
)
def test_synthetic_config__rejects(changes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SyntheticConfig(**changes)


def test_main__makes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "a"), "--num_train", "2", "--num_val", "1", "--image_size", "96"]
    main(arguments)
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "data.yaml")
    assert len(list((tmp_path / "a/images/train").iterdir())) == 2
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--seed", "5"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
