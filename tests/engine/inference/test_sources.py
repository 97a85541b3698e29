from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.errors import DataError
from engine.errors import ConfigError
from engine.inference.sources import find_files, read_frames


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
