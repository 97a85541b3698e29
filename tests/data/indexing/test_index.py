"""Finding images and labels, and packing them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.errors import DataError
from data.formats.dataset_yaml import DatasetYaml, read_dataset_yaml
from data.formats.image import read_image
from data.indexing.index import ImageIndex, build_index
from data.indexing.listing import find_label_file


def dataset_of(root: Path, *sources: Path) -> DatasetYaml:
    return DatasetYaml(root / "data.yaml", root, ("a", "b", "c"), {"train": sources})


GRAY = np.zeros((48, 64), np.uint8)
PICTURES = {suffix: cv2.imencode(".jpg", GRAY)[1].tobytes() for suffix in (".jpeg", ".jpg", ".jfif", ".jpe", ".mpo")}
PICTURES |= {suffix: cv2.imencode(suffix, GRAY)[1].tobytes() for suffix in (".png", ".tif", ".pgm", ".pbm", ".jp2")}
PICTURES |= {
    suffix: cv2.imencode(suffix, cv2.merge([GRAY] * 3))[1].tobytes()
    for suffix in (".avif", ".bmp", ".dib", ".gif", ".pnm", ".ppm", ".ras", ".tiff", ".webp")
}


def touch(*files: Path, text: str = "") -> None:
    """Write images of 64 x 48 pixels, and files of text."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(PICTURES.get(file.suffix.lower(), text.encode()))


def test_build_index__packs_labels_in_the_order_of_the_images(index: ImageIndex, yaml_file: Path) -> None:
    assert [Path(index.path(i)).name for i in range(len(index))] == [f"{i:03d}.png" for i in range(7)]
    assert Path(index.path(0)).parent == yaml_file.parent / "train" / "images"
    assert np.diff(index.box_offsets).tolist() == [2, 1, 0, 3, 0, 1, 1]
    boxes, classes = index.labels(3)
    assert classes.tolist() == [1, 0, 2]
    np.testing.assert_allclose(boxes[0], [0.1, 0.5, 0.5, 0.7], atol=1e-7)
    assert index.labels(4)[0].shape == (0, 4)


def test_image_index__labels_are_views_not_copies(index: ImageIndex) -> None:
    assert np.shares_memory(index.labels(0)[0], index.boxes_xyxy_rel)


def test_build_index__warns_once_with_counts(dataset_writer: object, caplog: pytest.LogCaptureFixture) -> None:
    file = dataset_writer([(16, 16)] * 4, ["0 0.5 0.5 0 0.1", "0 0.5 0.5 0 0.1\n1 0.1 0.5 0.4 0.4", None, None])
    with caplog.at_level(logging.WARNING):
        build_index(read_dataset_yaml(file), "train")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 1 boxes clipped to the image, 2 boxes without area dropped, 2 images without a label file"
    ]


def test_build_index__pose_rows_by_data_yaml(dataset_writer: object, tmp_path: Path) -> None:
    """An index that was made without ``kpt_shape`` is invalid for a data.yaml with it."""
    file = dataset_writer([(16, 16)], ["0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55"])
    boxes = lambda: build_index(read_dataset_yaml(file), "train", tmp_path / "cache").labels(0)[0].tolist()  # noqa: E731
    np.testing.assert_allclose(boxes(), [[0.2, 0.2, 0.55, 0.55]], atol=1e-6)
    file.write_text(file.read_text() + "kpt_shape: [2, 2]\n")
    np.testing.assert_allclose(boxes(), [[0.4, 0.4, 0.6, 0.6]], atol=1e-6)


def test_build_index__tells_that_all_polygons_may_be_key_points(
    dataset_writer: object, caplog: pytest.LogCaptureFixture
) -> None:
    pose, polygon = "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55\n", "0 0.8 0.8 0.9 0.8 0.9 0.9\n"
    file = dataset_writer([(16, 16)] * 2, [pose, pose])
    build_index(read_dataset_yaml(file), "train")
    assert "2 of them may be boxes with key points (if so, give kpt_shape in data.yaml)" in caplog.text
    caplog.clear()
    (file.parent / "train/labels/001.txt").write_text(polygon)
    build_index(read_dataset_yaml(file), "train")
    assert "2 polygons and rotated boxes reduced to boxes" in caplog.text and "key points" not in caplog.text


def test_build_index__tells_where_it_found_the_split(dataset_writer: object, caplog: pytest.LogCaptureFixture) -> None:
    file = dataset_writer([(16, 16)], ["0 0.5 0.5 0.2 0.2"])
    file.write_text("train: /content/boards/train/images\nnames: [a]\n")
    assert len(build_index(read_dataset_yaml(file), "train")) == 1
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{file}: train: '/content/boards/train/images': does not exist. {file.parent}")


def test_build_index__folders_are_searched_in_depth_and_sorted(tmp_path: Path) -> None:
    images = tmp_path / "images"
    names = ["c/3.bmp", "b/2.jpg", "a.PNG", "b/1.tiff", "ünïcode name.webp"]
    touch(*(images / name for name in names))
    touch(tmp_path / "labels" / "a.txt", images / "notes.md", images / ".hidden.jpg")
    index = build_index(dataset_of(tmp_path, images), "train")
    found = [Path(index.path(i)).relative_to(images).as_posix() for i in range(len(index))]
    assert found == ["a.PNG", "ünïcode name.webp", "b/1.tiff", "b/2.jpg", "c/3.bmp"]


@pytest.mark.parametrize("suffix", sorted(PICTURES))
def test_build_index__every_format_that_opencv_decodes(tmp_path: Path, suffix: str) -> None:
    """An image that is passed over loses its labels."""
    touch(tmp_path / f"images/x{suffix.upper()}", tmp_path / "images/a.jpg")
    touch(tmp_path / "labels/x.txt", text="1 0.5 0.5 0.5 0.5\n")
    index = build_index(dataset_of(tmp_path, tmp_path / "images"), "train")
    assert index.labels(1)[1].tolist() == [1] and index.sizes_hw.tolist() == [[48, 64]] * 2
    assert read_image(index.path(1)).shape == (48, 64, 3)


def test_build_index__pictures_that_cannot_be_decoded_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.jpg", "b.HEIC", "c.heif", "notes.txt", "Thumbs.db", ".DS_Store", "._d.heic"]
    touch(*(tmp_path / "images" / name for name in names), tmp_path / "labels/a.txt")
    assert len(build_index(dataset_of(tmp_path, tmp_path / "images"), "train")) == 1
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / 'images'}: 2 images are passed over, such as {tmp_path / 'images/b.HEIC'}: ")


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_build_index__hidden_folders_hold_no_images(tmp_path: Path, folder: str) -> None:
    """Jupyter, Synology and macOS leave copies there, which have no labels."""
    touch(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", tmp_path / "images" / folder / "a-copy.jpg")
    assert len(build_index(dataset_of(tmp_path, tmp_path / "images"), "train")) == 1


def test_build_index__images_that_share_a_label_file_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(*(tmp_path / "images" / name for name in ("a.jpg", "a.b.jpg", "a.png", "sub/a.jpg")))
    touch(tmp_path / "labels/a.txt", tmp_path / "labels/a.b.txt", tmp_path / "labels/sub/a.txt")
    build_index(dataset_of(tmp_path, tmp_path / "images"), "train")
    [line] = [record.getMessage() for record in caplog.records]
    assert f"1 images share their label file with another, such as {tmp_path / 'images/a.png'}. Remove or" in line


@pytest.mark.parametrize("start", ["/content/set", "C:\\sets\\set", ""])
def test_build_index__list_file_of_another_machine(tmp_path: Path, start: str, caplog) -> None:
    touch(tmp_path / "images/train/1.jpg", tmp_path / "images/train/2.jpg", tmp_path / "labels/train/1.txt")
    touch(tmp_path / "2.jpg")
    sep = "\\" if "\\" in start or not start else "/"
    entries = [sep.join(filter(None, [start, "images", "train", name])) for name in ("1.jpg", "2.jpg", "3.jpg")]
    (tmp_path / "train.txt").write_text("\n".join(entries[:2]), encoding="utf-16")
    index = build_index(dataset_of(tmp_path, tmp_path / "train.txt"), "train")
    assert [index.path(i) for i in range(2)] == [str(tmp_path / "images/train" / name) for name in ("1.jpg", "2.jpg")]
    assert f"train.txt: the paths belong to another machine. {tmp_path} is used instead" in caplog.text
    touch(tmp_path / "3.jpg")
    touch(tmp_path / "train.txt", text="\n".join(entries))
    with pytest.raises(DataError, match=r"train\.txt:3: no image .*3\.jpg"):
        build_index(dataset_of(tmp_path, tmp_path / "train.txt"), "train")


def test_build_index__does_not_follow_a_loop_of_links(tmp_path: Path) -> None:
    touch(tmp_path / "images" / "a.jpg", tmp_path / "labels" / "a.txt")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert len(build_index(dataset_of(tmp_path, tmp_path / "images"), "train")) == 1


def test_build_index__list_file(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg", tmp_path / "lists/b.jpg", tmp_path / "labels/a.txt")
    entries = f"images/a.jpg\n\n ./b.jpg \n{tmp_path / 'images/a.jpg'}\n"
    touch(tmp_path / "lists/train.txt", text=entries)
    index = build_index(dataset_of(tmp_path, tmp_path / "lists/train.txt"), "train")
    assert [Path(index.path(i)).name for i in range(3)] == ["a.jpg", "b.jpg", "a.jpg"]


def test_build_index__several_sources_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "z/images/1.jpg", tmp_path / "a/images/2.jpg", tmp_path / "a/labels/2.txt")
    index = build_index(dataset_of(tmp_path, tmp_path / "z", tmp_path / "a"), "train")
    assert [Path(index.path(i)).name for i in range(2)] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("set/images/train/x.jpg", "set/labels/train/x.txt"),
        ("images/set/images/x.y.jpg", "images/set/labels/x.y.txt"),
        ("images/images.jpg", "labels/images.txt"),
        ("images/x.jpg", "images/x.txt"),
        ("photos/x.jpg", "photos/x.txt"),
        ("set/Images/train/x.jpg", "set/Labels/train/x.txt"),
        ("set/IMAGES/x.JPG", "set/LABELS/x.txt"),
        ("set/Images/x.jpg", "set/labels/x.txt"),
        ("set/images/x.jpg", "set/Labels/x.txt"),
        ("set/jpegimages/x.jpg", "set/annotations/x.xml"),
        ("set/Images/x.jpg", "set/Annotations/x.xml"),
    ],
)
def test_find_label_file__beside_or_in_the_labels_folder(tmp_path: Path, image: str, label: str) -> None:
    assert find_label_file(str(tmp_path / image)) is None
    touch(tmp_path / label)
    assert find_label_file(str(tmp_path / image)) == str(tmp_path / label)


def test_find_label_file__labels_folder_goes_first(tmp_path: Path) -> None:
    touch(tmp_path / "images/x.txt", tmp_path / "labels/x.txt")
    assert find_label_file(str(tmp_path / "images/x.jpg")) == str(tmp_path / "labels/x.txt")


def test_build_index__rejects(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains no image\. Give files that end in \.avif \.bmp"):
        build_index(dataset_of(tmp_path, tmp_path / "empty"), "train")
    touch(tmp_path / "images/a.jpg")
    with pytest.raises(DataError, match=r"no train image has a label file\. .*a\.jpg needs .*labels/a\.txt"):
        build_index(dataset_of(tmp_path, tmp_path / "images"), "train")
    touch(tmp_path / "list.txt", text="images/a.jpg\nimages/b.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt:2: no image 'images/b\.jpg'\. Correct or remove the line"):
        build_index(dataset_of(tmp_path, tmp_path / "list.txt"), "train")
    touch(tmp_path / "list.txt", text="images/a.jpg, b.jpg" + 99 * ", c.jpg")  # too long for a name
    with pytest.raises(DataError, match=r"list\.txt:1: no image 'images/a\.jpg, b\.jpg, .*\. Correct or remove"):
        build_index(dataset_of(tmp_path, tmp_path / "list.txt"), "train")
    with pytest.raises(DataError, match=r"a\.jpg: unknown kind\. Give a folder of images, a list file"):
        build_index(dataset_of(tmp_path, tmp_path / "images/a.jpg"), "train")
    touch(tmp_path / "labels/a.txt", text="9 0.5 0.5 0.1 0.1")
    with pytest.raises(DataError, match=r"labels/a\.txt:1: class 9"):
        build_index(dataset_of(tmp_path, tmp_path / "images"), "train")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_build_index__path_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path / "images" / name, tmp_path / "images" / name.replace("jpg", "txt"))
    index = build_index(dataset_of(tmp_path, tmp_path / "images"), "train")
    assert Path(index.path(0)).is_file()
