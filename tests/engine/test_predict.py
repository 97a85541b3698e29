"""Predictions written for pictures, folders, patterns and videos, by a network that finds something."""

from __future__ import annotations

import json
import os
import re
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
from engine.predict import _fresh, main
from engine.run.checkpoint import LoadedNetwork
from models.detection.postprocess import Detections
from tests.helpers.checkpoints import Overfitted
from tests.helpers.faults import FULL, full_disk


def test_fresh__refuses_what_can_have_no_neighbor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _fresh(Path()) == Path()
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match=r"^--output: \.: is not empty: choose another folder$"):
        _fresh(Path())


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
        ("--device=meta", "--device: meta: is not available here"),
        ("--nothing", "--nothing: no such option"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
            main(["--ckpt_path=x", f"--source={pictures}", f"--output={tmp_path / 'out'}", option])
        assert "\n" not in str(error.value)


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

    def test_device__rejects_what_is_not_there(self, overfitted: Overfitted, tmp_path: Path) -> None:
        source = f"--source={overfitted.images[0]}"
        arguments = [f"--ckpt_path={overfitted.checkpoint}", source, f"--output={tmp_path}"]
        for option, message in [
            ("--device=abacus", "--device: abacus: is not available here"),
            ("--overlap=1", "--overlap: 1.0: must be at least 0 and below 1"),
            ("--tile=-1", "--tile: -1: must not be negative"),
            ("--conf=7", "--conf: 7.0: must be between 0 and 1"),
        ]:
            with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
                main([*arguments, option])
