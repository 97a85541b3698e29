"""What a customer is told about a data set: every kind of trouble, in words, numbers and pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data.errors import DataError
from engine.errors import ConfigError
from engine.inspect import main
from engine.loop.datamodule import DetectionData

BOX = "0 0.5 0.5 0.5 0.5\n"
CLASSES = "names: [common, rare, unseen]\n"


def picture(seed: int) -> bytes:
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, (40, 80, 3), np.uint8))[1].tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training and two validation images, all in order."""
    for split, seeds in (("train", range(6)), ("valid", range(6, 8))):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for seed in seeds:
            (tmp_path / split / "images" / f"{seed}.png").write_bytes(picture(seed))
            (tmp_path / split / "labels" / f"{seed}.txt").write_text(BOX + "1 0.2 0.2 0.02 0.04\n" * (seed == 0))
    file = tmp_path / "data.yaml"
    file.write_text(f"train: train/images\nval: valid/images\n{CLASSES}")
    return file


def inspect(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    main([f"--root={root}", "--json", "--workers=1", *options])
    return json.loads(capsys.readouterr().out)


def test_main__counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(root, capsys, "--image_size=160")
    train = facts["splits"]["train"]
    assert (train["num_images"], train["num_boxes"], train["max_boxes_per_image"]) == (6, 7, 2)
    assert train["boxes_per_class"] == [6, 1, 0] and train["images_per_class"] == [6, 1, 0]
    assert train["image_sizes"] == {"80 x 40": 6}
    # at 160 px the image is 160 x 80: 80 x 40 and 3.2 x 3.2
    assert train["boxes_per_size"] == {
        "below 8 px": 1, "8 to 16 px": 0, "16 to 32 px": 0, "32 to 96 px": 6, "96 px and more": 0
    }  # fmt: skip
    assert facts["leaks"] == facts["related"] == [] and facts["duplicates"] == {"train": [], "val": []}


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file's name may be any bytes")
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"$\\frac$.png"])
def test_inspect__any_name_of_a_file(root: Path, tmp_path: Path, name: bytes) -> None:
    """As archives from Windows leave them; printed where only ASCII can be."""
    folder = os.fsencode(root.parent / "train")
    os.rename(folder + b"/images/1.png", folder + b"/images/" + name)  # noqa: PTH104
    os.rename(folder + b"/labels/1.txt", folder + b"/labels/" + name.replace(b"png", b"txt"))  # noqa: PTH104
    Path(os.fsdecode(folder + b"/images/none" + name)).write_bytes(b"")
    command = [sys.executable, "-m", "engine.inspect", f"--root={root}", f"--output={tmp_path / 'out'}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1), result.stderr
    assert "1 unusable image" in result.stdout and "\\u2192 restore or remove" in result.stdout


def test_main__tells_what_is_good_and_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"--root={root}", "--workers=1"])
    text = " ".join(capsys.readouterr().out.split())
    assert "no image is in two splits" in text and "6 images and their labels can be read" in text
    assert "without any object: rare, unseen (2 of 3)" in text and "without any object: unseen (1 of 3)" in text
    assert "in fewer than 10 images: common (6), rare (1)" in text
    assert "14.3% of the objects are below 8 px at image size 640" not in text  # 12.8 px there


def test_main__leakage_duplicates_and_copies_by_roboflow(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root.parent
    (folder / "valid/images/leaked.png").write_bytes(picture(1))
    (folder / "train/images/again.png").write_bytes(picture(2))
    (folder / "train/images/board_jpg.rf.0a1b.png").write_bytes(picture(20))
    (folder / "valid/images/board_jpg.rf.9f8e.png").write_bytes(picture(21))
    (folder / "valid/images/other_jpg.rf.9f8e.png").write_bytes(picture(22))
    facts = inspect(root, capsys)
    names = lambda groups: [sorted(Path(path).name for path in group) for group in groups]  # noqa: E731
    assert names(facts["leaks"]) == [["1.png", "leaked.png"]]
    assert names(facts["duplicates"]["train"]) == [["2.png", "again.png"]] and facts["duplicates"]["val"] == []
    assert names(facts["related"]) == [["board_jpg.rf.0a1b.png", "board_jpg.rf.9f8e.png"]]
    main([f"--root={root}", "--workers=1"])
    text = " ".join(capsys.readouterr().out.split())
    assert "problem leakage 1 image in several splits train/images/1.png = valid/images/leaked.png" in text


def test_main__bad_files_end_in_a_full_list_one_line_and_status_2(root: Path) -> None:
    folder = root.parent
    (folder / "train/images/3.png").write_bytes(b"")
    (folder / "train/labels/4.txt").write_text("0 0.5 0.5 0.1\n")
    (folder / "valid/labels/7.txt").write_text("0 nan 0.5 0.1 0.1\n")
    command = [sys.executable, "-m", "engine.inspect", f"--root={root}", "--workers=1", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    facts = json.loads(result.stdout)
    assert [Path(line.partition(": ")[0]).name for line in facts["splits"]["train"]["left_out"]] == ["3.png"]
    assert "4.txt:1: 4 columns" in facts["splits"]["train"]["refused"][0]
    assert "7.txt:1: 'nan' is not a finite number" in facts["splits"]["val"]["refused"][0]
    assert re.match(r"error: .*4\.txt:1: 4 columns", result.stderr) and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--root=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--image_size=0"], "--image_size: 0: must be at least 1"),
    ],
)
def test_main__rejects(root: Path, options: list[str], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        main([f"--root={root}", *options])


def test_main__split_without_usable_images_is_an_error(root: Path) -> None:
    for file in (root.parent / "valid/images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 val images can be used: .*6\.png: the file is empty"):
        main([f"--root={root}", "--workers=1"])


def test_main__writes_pictures_only_where_it_is_told(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "put"
    main([f"--root={root}", f"--output={output}", "--workers=1", "--json"])
    names = {"inspect.json", "labels_train.png", "labels_val.png", "examples_train.png", "examples_val.png"}
    assert {file.name for file in output.iterdir()} == names
    for name in names - {"inspect.json"}:
        image = cv2.imread(str(output / name))
        assert image.shape[0] > 300 and image.shape[1] > 900 and image.std() > 10  # something is drawn
    assert json.loads((output / "inspect.json").read_text())["splits"]["val"]["num_images"] == 2
    assert {file.name for file in tmp_path.iterdir()} == {"data.yaml", "train", "valid", "out"}


def test_main__data_set_of_one_empty_image_has_pictures_too(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(picture(0))
    (tmp_path / "images/a.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [부품, b]\n")
    with pytest.raises(DataError, match="no object in any of the 1 train images"):
        main([f"--root={tmp_path / 'data.yaml'}", f"--output={tmp_path / 'out'}", "--workers=1", "--json"])
    assert (tmp_path / "out/labels_train.png").is_file()


def set_up(root: Path) -> str | None:
    """What training says when it reads the data set, if it refuses it."""
    data = DetectionData(str(root), batch_size=2, micro_batch_size=2, image_size=64, workers=0, cache="none")
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=1, num_devices=1, lightning_module=None
    )
    try:
        data.setup("fit")
    except DataError as error:
        return str(error)
    return None


def rename_labels(folder: Path) -> None:
    (folder / "train/labels").rename(folder / "train/annotated")


def empty_labels(folder: Path, split: str) -> None:
    for file in (folder / split / "labels").iterdir():
        file.write_text("")


def only_boxes_without_area(folder: Path) -> None:
    for file in (folder / "train/labels").iterdir():
        file.write_text("0 0.5 0.5 0 0\n")


TROUBLE: dict[str, Callable[[Path], object]] = {
    "in order": lambda folder: None,
    "label files elsewhere": rename_labels,
    "all empty": lambda folder: empty_labels(folder, "train"),
    "only boxes without area": only_boxes_without_area,
    "validation without objects": lambda folder: empty_labels(folder, "valid"),
    "validation without label files": lambda folder: shutil.rmtree(folder / "valid/labels"),
    "unknown class": lambda folder: (folder / "train/labels/2.txt").write_text("3 0.5 0.5 0.1 0.1\n"),
    "all lines broken": lambda folder: (folder / "valid/labels/6.txt").write_text("a b\nc\n"),
    "images unreadable": lambda folder: [file.write_bytes(b"") for file in (folder / "train/images").iterdir()],
    "some images unreadable": lambda folder: (folder / "train/images/1.png").write_bytes(b""),
    "no images": lambda folder: shutil.rmtree(folder / "train/images") or (folder / "train/images").mkdir(),
    "test split without labels": lambda folder: add_test_split(folder, None),
    "test split with a wrong label": lambda folder: add_test_split(folder, "0 2 2 2 2\n"),
    "test split without images": lambda folder: (
        (folder / "test").mkdir() or (folder / "data.yaml").open("a").write("test: test\n")
    ),
    "no val": lambda folder: (folder / "data.yaml").write_text(f"train: train/images\n{CLASSES}"),
}


def add_test_split(folder: Path, label: str | None) -> None:
    (folder / "test").mkdir()
    (folder / "test/a.png").write_bytes(picture(9))
    if label is not None:
        (folder / "test/a.txt").write_text(label)
    with (folder / "data.yaml").open("a") as file:
        file.write("test: test\n")


@pytest.mark.parametrize("trouble", TROUBLE)
def test_main__refuses_what_training_refuses_in_the_same_words(root: Path, trouble: str) -> None:
    TROUBLE[trouble](root.parent)
    refused = set_up(root)
    try:
        main([f"--root={root}", "--workers=1"])
        inspected = None
    except DataError as error:
        inspected = str(error)
    assert inspected == refused


@pytest.mark.parametrize(
    "trouble", ["label files elsewhere", "all empty", "only boxes without area", "validation without label files"]
)
def test_training__refuses_what_cannot_be_learned(root: Path, trouble: str) -> None:
    TROUBLE[trouble](root.parent)
    assert re.search("no (train|val) image has a label file|no object in any of the 6 train images", set_up(root) or "")


def test_main__split_that_training_does_not_use_is_a_problem_all_the_same(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_test_split(root.parent, "0 2 2 2 2\n")
    main([f"--root={root}", "--workers=1"])
    assert re.search(r"problem\s+test labels\s+1 wrong label file", capsys.readouterr().out)


def test_main__without_validation_images_says_that_training_refuses(root: Path) -> None:
    root.write_text(f"train: train/images\n{CLASSES}")
    with pytest.raises(DataError, match=r"data\.yaml: no key 'val'"):
        main([f"--root={root}", "--workers=1"])


def test_main__shows_any_name_as_it_is(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets, colons and dollars are no markup, and a file name may hold bytes that are no UTF-8."""
    root.write_text("train: train/images\nval: valid/images\nnames: ['[/b]', 'cap [smd]', '$x^$', ':cat:']\n")
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        file = root.parent / "train" / kind / f"0{suffix}"
        file.rename(os.fsdecode(os.fsencode(file.parent) + b"/\xb1\xb9" + os.fsencode(file.name)))
    main([f"--root={root}", "--workers=1", f"--output={tmp_path / 'report'}"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("[/b]", "cap [smd]", "$x^$", ":cat:"))
    assert (tmp_path / "report" / "examples_train.png").exists()


def test_main__without_any_label_file_says_that_training_refuses(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root.parent / "valid/labels").rename(root.parent / "valid/annotated")
    with pytest.raises(DataError, match=r"no val image has a label file\. .*6\.png needs .*labels/6\.txt"):
        main([f"--root={root}", "--workers=1"])
    said = " ".join(capsys.readouterr().out.split())
    assert "problem val images" in said and "2 images and their labels can be read" not in said


def test_main__test_split_that_is_not_there_or_wrong_does_not_stop_training(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root.write_text(f"{root.read_text()}\ntest: ../test/images\n")
    main([f"--root={root}", "--workers=1"])
    assert "note test path" in " ".join(capsys.readouterr().out.split())
    (root.parent / "test/images").mkdir(parents=True)
    (root.parent / "test/images/a.png").write_bytes(picture(30))
    (root.parent / "test/images/a.txt").write_text("0 0.5")
    main([f"--root={root}", "--workers=1"])
    assert "1 wrong label file" in capsys.readouterr().out


def test_main__tells_where_it_found_a_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.write_text(f"train: /content/set/train/images\nval: valid/images\n{CLASSES}")
    main([f"--root={root}", "--workers=1"])
    assert "note train path" in " ".join(capsys.readouterr().out.split())
