"""Predictions written for pictures, folders, patterns and videos, by a network that finds something."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.errors import DataError
from data.formats.image import read_image
from engine import predict
from engine.errors import ConfigError
from engine.inference.predictor import Predictor
from engine.inference.results import PredictionFolder, summary_line
from engine.inference.sources import Frame, find_files, read_frames
from engine.predict import _fresh, main
from engine.run.checkpoint import LoadedNetwork, load_network
from models.detection.postprocess import Detections, NmsConfig
from tests.helpers.checkpoints import Overfitted
from tests.helpers.faults import FULL, full_disk


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Plain pictures of several kinds, one of them deeper, with names that collide or are not ASCII."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, size in {"a.jpg": (40, 60), "a.png": (40, 60), "deep/a.jpg": (20, 30), "부품.png": (30, 30)}.items():
        content = cv2.imencode(Path(name).suffix, np.full((*size, 3), 90, np.uint8))[1]
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_find_files__folder_pattern_and_file(pictures: Path) -> None:
    assert [p.relative_to(pictures).as_posix() for p in find_files(str(pictures))] == [
        "a.jpg",
        "a.png",
        "deep/a.jpg",
        "부품.png",
    ]
    assert [p.name for p in find_files(str(pictures / "*.png"))] == ["a.png", "부품.png"]
    assert find_files(str(pictures / "a.jpg")) == [pictures / "a.jpg"]


@pytest.mark.parametrize("source", ["none", "none/*.jpg", "notes.txt"])
def test_find_files__rejects_what_holds_nothing(source: str, pictures: Path) -> None:
    message = f"--source: {pictures / source}: no image or video. Give a file, folder or pattern of .avi"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        find_files(str(pictures / source))


def test_read_frames__no_two_share_a_name(pictures: Path) -> None:
    assert [frame.stem for frame in read_frames(find_files(str(pictures)))] == ["a", "a_png", "a_jpg", "부품"]


def test_read_frames__a_video_beside_the_pictures_it_was_cut_into(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(2):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    (tmp_path / "A").mkdir()
    for name in ("A/a_000001.png", "a_000002.png"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1])
    stems = [frame.stem for frame in read_frames(find_files(str(tmp_path)))]
    assert stems == ["a_000001", "a_000002", "a_000001_png", "a_000002_png"]


def test_fresh__refuses_what_can_have_no_neighbor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _fresh(Path()) == Path()
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match=r"^--output: \.: is not empty: choose another folder$"):
        _fresh(Path())


def test_folder__rejects_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path / "out", ["a"])
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    frame = Frame(np.zeros((640, 640, 3), np.uint8), Path("a.webm"), "a_000001", 1, 90000.0)
    with pytest.raises(
        ConfigError, match=r"--source: a\.webm: cannot be written as MPEG-4 \(640 x 640 pixels at 90000"
    ):
        folder.add(frame, nothing)


def test_read_frames__rejects_a_broken_video(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"no frame can be read\. Convert"):
        list(read_frames([tmp_path / "broken.mp4"]))


@pytest.mark.parametrize("source", ["0", "rtsp://camera/1", "https://youtu.be/x"])
def test_find_files__rejects_cameras_and_streams(source: str) -> None:
    with pytest.raises(ConfigError, match=f"^--source: {source}: cameras and streams are not supported. Record"):
        find_files(source)


def test_find_files__passes_over_hidden_files_and_earlier_results(pictures: Path) -> None:
    for name in ("._a.jpg", ".b.png", "deep/._a.jpg"):
        (pictures / name).write_bytes(b"\0\5\26\7Mac OS X")
    (pictures / "out" / "labels").mkdir(parents=True)
    for name in ("predictions.json", "a.png", "labels/b.png"):
        (pictures / "out" / name).touch()
    assert [path.name for path in find_files(str(pictures))] == ["a.jpg", "a.png", "a.jpg", "부품.png"]
    assert len(find_files(str(pictures / "out"))) == 2  # who asks for them gets them


def test_find_files__a_list_several_sources_and_linked_folders(pictures: Path, tmp_path: Path) -> None:
    (pictures / "list.txt").write_text("\ufeffdeep/a.jpg\n\nnone.png\n", encoding="utf-8")
    listed = [pictures / "deep" / "a.jpg", pictures / "none.png"]
    assert find_files(str(pictures / "list.txt")) == listed
    assert find_files(str(pictures / "a.png"), str(pictures / "*.png"))[0] == pictures / "a.png"
    assert len(find_files(str(pictures), str(pictures))) == 4
    (pictures / "linked").symlink_to(tmp_path)
    errors: list[DataError] = []
    assert len(find_files(str(pictures), on_error=errors.append)) == 4
    assert str(errors[0]).startswith(f"{pictures / 'linked'}: a linked folder is not followed")


def test_read_frames__goes_on_after_what_cannot_be_read(pictures: Path) -> None:
    broken = {
        "0.png": b"",
        "cut.png": (pictures / "a.png").read_bytes()[:60],
        "text.jpg": b"text",
        "v.mp4": b"no video",
    }
    for name, content in broken.items():
        (pictures / name).write_bytes(content)
    (pictures / "gone.png").symlink_to("nothing")
    errors: list[DataError] = []
    frames = list(read_frames(find_files(str(pictures)), errors.append))
    assert len(frames) == 4
    assert sorted(Path(str(error).partition(": ")[0]).name for error in errors) == sorted([*broken, "gone.png"])


def test_read_frames__no_two_share_a_name_where_case_and_form_do_not_count(tmp_path: Path) -> None:
    for place, name in [("1", "é.png"), ("2", "e\u0301.png"), ("3", "a.png"), ("4", "A.png")]:
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1])
    stems = [unicodedata.normalize("NFC", frame.stem).lower() for frame in read_frames(find_files(str(tmp_path)))]
    assert len(set(stems)) == 4


def test_predict__names_what_cannot_be_read_and_ends_with_the_status_of_an_error(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Identity()
    monkeypatch.setattr(predict, "load_network", lambda *_: LoadedNetwork(network, "yolo11n", ["ic"], 32))
    nothing = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    monkeypatch.setattr(Predictor, "detect", lambda *_: nothing)
    (pictures / "0.png").write_bytes(b"")
    arguments = ["--ckpt_path=x", f"--source={pictures}", f"--output={pictures}", "--device=cpu"]
    before = {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}
    with pytest.raises(DataError, match=r"^--source: 1 of the files or folders could not be read: see the warnings"):
        main(arguments)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: {pictures / '0.png'}: the file is empty")
    assert captured.out.splitlines()[:-1] == ["a: nothing", "a_png: nothing", "a_jpg: nothing", "부품: nothing"]
    results = tmp_path / "pictures-2"  # the source is where the output was asked for: nothing of it is touched
    assert before == {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}
    assert len(list((results / "labels").iterdir())) == 4
    assert len(json.loads((results / "predictions.json").read_text())["images"]) == 4


def test_options__that_make_no_sense_are_one_line(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(predict, "load_network", lambda *_: LoadedNetwork(torch.nn.Identity(), "yolo11n", ["ic"], 32))
    for option, message in [
        ("--tile=1", "--tile: 1: must be at least 32 pixels, or 0"),
        ("--tile=-5", "--tile: -5: must not be negative"),
        ("--tile=nan", "--tile: nan: expected int"),
        ("--overlap=nan", "--overlap: nan: must be at least 0 and below 1"),
        ("--conf=nan", "--conf: nan: must be between 0 and 1"),
        ("--iou=-1", "--iou: -1.0: must be between 0 and 1"),
        ("--max_detections=0", "--max_detections: 0: must be at least 1"),
        ("--device=meta", "--device: meta: not to be had here"),
        ("--nothing", "--nothing: no such option"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
            main(["--ckpt_path=x", f"--source={pictures}", f"--output={tmp_path / 'out'}", option])
        assert "\n" not in str(error.value)


def test_detect__refuses_more_tiles_than_anyone_would_wait_for() -> None:
    loaded = LoadedNetwork(torch.nn.Identity(), "yolo11n", ["ic"], 32)
    predictor = Predictor(loaded, NmsConfig(), torch.device("cpu"), tile_px=32, overlap=0.99)
    message = r"^--tile: 32: cuts 640 x 480 pixels into .* tiles, .* Give a larger --tile or a smaller --overlap\.$"
    with pytest.raises(ConfigError, match=message):
        predictor.detect(np.zeros((480, 640, 3), np.uint8))


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


@pytest.mark.slow
class TestPredict:
    def test_folder__pictures_labels_and_json_agree(self, overfitted: Overfitted, tmp_path: Path) -> None:
        source = overfitted.images[0].parent
        arguments = [f"--ckpt_path={overfitted.checkpoint}", f"--source={source}", f"--output={tmp_path / 'out'}"]
        folder = main([*arguments, "--conf=0.1"])
        content = json.loads((folder / "predictions.json").read_text())
        assert len(content["images"]) == len(overfitted.images)
        assert [category["name"] for category in content["categories"]] == overfitted.names
        assert len(content["annotations"]) > 10
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            mine = [one for one in content["annotations"] if one["image_id"] == image["id"]]
            lines = (folder / "labels" / f"{stem}.txt").read_text().splitlines()
            assert len(lines) == len(mine)
            for line, annotation in zip(lines, mine, strict=True):
                c, x, y, w, h, score = (float(part) for part in line.split())
                box = np.array([(x - w / 2), (y - h / 2), w, h]) * 96
                np.testing.assert_allclose(box, annotation["bbox"], atol=1e-2)
                assert (int(c), score) == (annotation["category_id"], annotation["score"])
            drawn = next(path for path in folder.iterdir() if path.stem == stem)
            assert read_image(drawn).shape == (672, 672, 3)  # 96 pixels, enlarged
        assert main([*arguments, "--conf=0.9"]).name == "out-2"

    def test_output__that_cannot_be_written_is_one_line(self, overfitted: Overfitted, tmp_path: Path) -> None:
        picture = tmp_path / os.fsdecode(b"\xb1\xb9.jpg")  # no UTF-8
        picture.write_bytes(overfitted.images[0].read_bytes())
        arguments = [f"--ckpt_path={overfitted.checkpoint}", f"--source={picture}"]
        content = json.loads((main([*arguments, f"--output={tmp_path / 'out'}"]) / "predictions.json").read_text())
        assert content["images"][0]["file_name"] == str(picture)
        with pytest.raises(ConfigError, match=r"^--output: .*\.jpg: cannot be written \(Not a directory\): make room"):
            main([*arguments, f"--output={picture}"])
        with (
            full_disk(at_bytes=1000),
            pytest.raises(ConfigError, match=rf"^--output: .*: cannot be written \({FULL}\)"),
        ):
            main([*arguments, f"--output={tmp_path / 'full'}"])

    def test_video__a_video_with_boxes(self, overfitted: Overfitted, tmp_path: Path) -> None:
        boards = [cv2.imread(str(path)) for path in overfitted.images[:4]]
        writer = cv2.VideoWriter(str(tmp_path / "boards.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 96))
        for board in boards:
            writer.write(board)
        writer.release()
        source = f"--source={tmp_path / 'boards.mp4'}"
        folder = main([f"--ckpt_path={overfitted.checkpoint}", source, f"--output={tmp_path / 'out'}", "--conf=0.05"])
        video = cv2.VideoCapture(str(folder / "boards.mp4"))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4
        assert video.get(cv2.CAP_PROP_FRAME_WIDTH) == 672
        content = json.loads((folder / "predictions.json").read_text())
        assert [image["frame"] for image in content["images"]] == [1, 2, 3, 4]
        assert len(list((folder / "labels").iterdir())) == 4

    def test_tiles__find_on_a_large_board_what_is_on_each_part(self, overfitted: Overfitted) -> None:
        """Six boards side by side, looked at in pieces of one board's size without overlap: the same detections."""
        images = [read_image(path) for path in overfitted.images[:6]]
        board = np.vstack([np.hstack(images[:3]), np.hstack(images[3:])])
        nms = NmsConfig(confidence=0.25, multi_label=False)
        device = torch.device("cpu")
        loaded = load_network(overfitted.checkpoint, "--ckpt_path")
        tiled = Predictor(loaded, nms, device, tile_px=96, overlap=0.0).detect(board)
        whole = [Predictor(loaded, nms, device).detect(image) for image in images]
        assert len(tiled.scores) > 3
        # A part of what ends at a border may have been put together with its neighbor's; all others are there.
        for i, found in enumerate(whole):
            offset = torch.tensor([i % 3, i // 3, i % 3, i // 3]) * 96
            inner = ((found.boxes_xyxy_px > 3) & (found.boxes_xyxy_px < 93)).all(dim=1)
            for box in found.boxes_xyxy_px[inner] + offset:
                assert (tiled.boxes_xyxy_px - box).abs().amax(dim=1).min() < 1e-2

    def test_device__rejects_what_is_not_there(self, overfitted: Overfitted, tmp_path: Path) -> None:
        source = f"--source={overfitted.images[0]}"
        arguments = [f"--ckpt_path={overfitted.checkpoint}", source, f"--output={tmp_path}"]
        for option, message in [
            ("--device=abacus", "--device: abacus: not to be had here"),
            ("--overlap=1", "--overlap: 1.0: must be at least 0 and below 1"),
            ("--tile=-1", "--tile: -1: must not be negative"),
            ("--conf=7", "--conf: 7.0: must be between 0 and 1"),
        ]:
            with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
                main([*arguments, option])
