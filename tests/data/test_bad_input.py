"""Bad files as users have them: repaired, left out with a warning, or refused with file and line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augmentation.augment import AugmentConfig
from data.errors import DataError
from data.formats.dataset_yaml import read_dataset_yaml
from data.formats.image import MAX_PIXELS, read_image, read_size
from data.indexing.index import ImageIndex, build_index
from data.loading.dataset import TrainDataset, ValidationDataset
from data.loading.sampler import SampleKey

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))
IMAGE = Image.fromarray(PIXELS[::-1])
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
BOX = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with one good image, ``good.jpg``."""
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set/data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": ["a", "b"]}))
    add(tmp_path / "set", "good.jpg", JPEG)
    return tmp_path / "set"


def add(folder: Path, name: str, content: bytes, label: str | None = BOX) -> Path:
    file = folder / "images" / name
    file.write_bytes(content)
    if label is not None:
        (folder / "labels" / name).with_suffix(".txt").write_text(label)
    return file


def index_of(folder: Path) -> ImageIndex:
    return build_index(read_dataset_yaml(folder / "data.yaml"), "train")


def names_of(index: ImageIndex) -> list[str]:
    return [Path(index.path(i)).name for i in range(len(index))]


def make_every_sample(index: ImageIndex) -> None:
    """What a worker does with each image."""
    train = TrainDataset(index, 64, AugmentConfig(), seed=0, max_epochs=20)
    for i in range(len(index)):
        for sample in (train[SampleKey(0, i)], train[SampleKey(15, i)], ValidationDataset(index, 64)[SampleKey(0, i)]):
            assert sample.image.shape == (3, 64, 64)
            assert (sample.boxes_xyxy_px >= 0).all() and (sample.boxes_xyxy_px <= 64).all()


LEFT_OUT = {
    "zero_bytes.jpg": (b"", "the file is empty"),
    "cut_off.jpg": (JPEG[:-200], "the file is cut off"),
    "cut_off.png": (PNG[:-200], "the file is cut off"),
    "header_only.jpg": (JPEG[:300], "the file is cut off"),
    "text.jpg": (b"hello, I am no image\n", "not an image that OpenCV can read"),
    "zeros.png": (bytes(5000), "not an image that OpenCV can read"),
    "cut_off_with_tail.png": (PNG[:-200] + b"tail" * 5000, "the file is cut off"),
    "floats.png": (b"Pf\n16 16\n-1\n" + bytes(4 * 256), "not an image that OpenCV can read"),
    "tiny.png": (cv2.imencode(".png", PIXELS[:9])[1].tobytes(), "80 x 9 pixels: a side is below 10 pixels"),
    "cut_off.bmp": (cv2.imencode(".bmp", PIXELS)[1].tobytes()[:40], "not an image that OpenCV can read"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_bad_image__is_left_out_with_a_counted_warning(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, message = LEFT_OUT[name]
    add(folder, name, content)
    with caplog.at_level(logging.WARNING):
        index = index_of(folder)
    assert names_of(index) == ["good.jpg"]
    [record] = caplog.records
    assert record.getMessage().startswith(f"train: 1 images left out: {folder / 'images' / name}: {message}")
    assert f"python -m engine.inspect --root {folder / 'data.yaml'} lists them all" in record.getMessage()
    make_every_sample(index)


def test_bad_image__several_are_counted_in_one_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, (content, _) in LEFT_OUT.items():
        add(folder, name, content)
    assert names_of(index_of(folder)) == ["good.jpg"]
    [line] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith("train: 10 images left out: ")


def test_bad_image__all_of_them_are_refused(folder: Path) -> None:
    (folder / "images/good.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 train images can be used: .*good\.jpg: the file is empty"):
        index_of(folder)


def test_decompression_bomb__is_left_out_without_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    header = bytearray(cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    header[16:24] = (60_000).to_bytes(4) + (60_000).to_bytes(4)
    import zlib

    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4)
    add(folder, "bomb.png", bytes(header))
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("decoded"))
    assert names_of(index_of(folder)) == ["good.jpg"]
    assert f"bomb.png: the image has more than {MAX_PIXELS} pixels. Resize it" in caplog.text


def save(mode: str, **options: object) -> Callable[[Path], None]:
    return lambda file: Image.fromarray(PIXELS).convert(mode).save(file, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


REPAIRED: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "gray.png": (save("L"), (60, 80)),
    "black_and_white.png": (save("1"), (60, 80)),
    "alpha.png": (save("RGBA"), (60, 80)),
    "gray_alpha.png": (save("LA"), (60, 80)),
    "palette.png": (save("P"), (60, 80)),
    "16_bit.png": (lambda file: cv2.imwrite(str(file), PIXELS.astype(np.uint16) * 257), (60, 80)),
    "16_bit.tiff": (lambda file: cv2.imwrite(str(file), PIXELS.astype(np.uint16) * 257), (60, 80)),
    "cmyk.jpg": (save("CMYK"), (60, 80)),
    "turned.jpg": (save("RGB", exif=exif(6)), (80, 60)),
    "turned.png": (save("RGB", exif=exif(8)), (80, 60)),
    "upside_down.jpg": (save("RGB", exif=exif(3)), (60, 80)),
    "progressive.jpg": (save("RGB", progressive=True), (60, 80)),
    "png_inside.jpg": (lambda file: file.write_bytes(PNG), (60, 80)),
    "jpeg_inside.PNG": (lambda file: file.write_bytes(JPEG), (60, 80)),
    "tail.jpg": (lambda file: file.write_bytes(JPEG + b"tail" * 5000), (60, 80)),
    "tail.png": (lambda file: file.write_bytes(PNG + b"tail" * 5000), (60, 80)),
    "two_pictures.mpo": (lambda file: file.write_bytes(JPEG + JPEG), (60, 80)),
    "animated.gif": (lambda file: Image.fromarray(PIXELS).save(file, save_all=True, append_images=[IMAGE]), (60, 80)),
    "web.webp": (save("RGB"), (60, 80)),
    "web.avif": (save("RGB"), (60, 80)),
    "a b ünïcode 日本 🙂.jpg": (lambda file: file.write_bytes(JPEG), (60, 80)),
    "long.png": (lambda file: cv2.imwrite(str(file), np.zeros((20, 20_000, 3), np.uint8)), (20, 20_000)),
    "high.jpg": (lambda file: cv2.imwrite(str(file), np.zeros((20_000, 20, 3), np.uint8)), (20_000, 20)),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_unusual_image__is_used(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write, size_hw = REPAIRED[name]
    file = folder / "images" / name
    write(file)
    (folder / "labels" / name).with_suffix(".txt").write_text(BOX)
    index = index_of(folder)
    assert sorted(names_of(index)) == sorted(["good.jpg", name]) and not caplog.records
    position = names_of(index).index(name)
    assert tuple(index.sizes_hw[position]) == size_hw == read_image(file).shape[:2]
    make_every_sample(index)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([JPEG, PNG]), place=st.floats(0, 1), new=st.binary(max_size=12), cut=st.booleans())
def test_read_size__of_any_damaged_file_is_a_size_or_a_data_error(
    tmp_path: Path, kind: bytes, place: float, new: bytes, cut: bool
) -> None:
    position = int(place * len(kind))
    file = tmp_path / "x.jpg"
    file.write_bytes(kind[:position] + new + (b"" if cut else kind[position + len(new) :]))
    try:
        height, width = read_size(file)
    except DataError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
        return
    assert height >= 10 and width >= 10


BAD_ROWS = {
    "not a number": ("0 nan 0.5 0.1 0.1", "'nan' is not a finite number"),
    "infinite": ("0 0.5 inf 0.1 0.1", "'inf' is not a finite number"),
    "negative": ("0 -0.5 0.5 0.1 0.1", "coordinate -0.5 is not between 0 and 1"),
    "above one": ("0 0.5 1.5 0.1 0.1", "coordinate 1.5 is not between 0 and 1"),
    "in pixels": ("0 320 240 20 20", "coordinate 320 is not between 0 and 1"),
    "negative size": ("0 0.5 0.5 -0.001 0.1", "size -0.001 x 0.1 is negative"),
    "too few columns": ("0 0.5 0.5 0.1", "4 columns, expected 5"),
    "too many columns": ("0 0.5 0.5 0.1 0.1 0.99", "6 columns, expected 5"),
    "class out of range": ("2 0.5 0.5 0.1 0.1", r"class 2, but data\.yaml names 2 classes"),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "class -1, but"),
    "class by name": ("resistor 0.5 0.5 0.1 0.1", "'resistor' is not a finite number"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_label__is_refused_with_file_and_line(folder: Path, kind: str) -> None:
    row, message = BAD_ROWS[kind]
    add(folder, "bad.jpg", JPEG, f"{BOX}{row}\n")
    with pytest.raises(DataError, match=rf"labels/bad\.txt:2: {message}") as caught:
        index_of(folder)
    assert "\n" not in str(caught.value)


def test_bad_label__says_how_many_more_there_are(folder: Path) -> None:
    for number in range(3):
        add(folder, f"bad{number}.jpg", JPEG, "7 0.5 0.5 0.1 0.1")
    with pytest.raises(DataError, match=r"bad0\.txt:1: class 7.* 2 more label files are wrong: python -m engine"):
        index_of(folder)


def test_repaired_labels__are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(folder, "twice.jpg", JPEG, BOX * 3)
    add(folder, "flat.jpg", JPEG, "0 0.5 0.5 0 0.1\n" + BOX)
    add(folder, "over.jpg", JPEG, "0 0.05 0.5 0.2 0.2\n")
    add(folder, "turned.jpg", JPEG, "0 0.5 0.2 0.8 0.5 0.5 0.8 0.2 0.5\n")
    add(folder, "outline.jpg", JPEG, "1 0.1 0.1 0.5 0.2 0.4 0.6 0.3 0.6 0.1 0.5\n")
    add(folder, "nothing.jpg", JPEG, "\n")
    add(folder, "unlabeled.jpg", JPEG, None)
    with caplog.at_level(logging.WARNING):
        index = index_of(folder)
    assert [record.getMessage() for record in caplog.records] == [
        "train: 2 polygons and rotated boxes reduced to boxes, 1 boxes clipped to the image, 1 boxes without area "
        "dropped, 2 repeated objects dropped, 1 images without a label file"
    ]
    by_name = dict(zip(names_of(index), range(len(index)), strict=True))
    np.testing.assert_allclose(index.labels(by_name["turned.jpg"])[0], [[0.2, 0.2, 0.8, 0.8]], atol=1e-6)
    np.testing.assert_allclose(index.labels(by_name["outline.jpg"])[0], [[0.1, 0.1, 0.5, 0.6]], atol=1e-6)
    assert len(index.labels(by_name["nothing.jpg"])[0]) == len(index.labels(by_name["unlabeled.jpg"])[0]) == 0
    make_every_sample(index)


def test_missing_label_files__of_every_image_are_refused(folder: Path) -> None:
    (folder / "labels/good.txt").unlink()
    with pytest.raises(DataError, match=r"no train image has a label file\. .*good\.jpg needs .*labels/good\.txt \(or"):
        index_of(folder)


def test_empty_folder__is_refused(folder: Path) -> None:
    (folder / "images/good.jpg").unlink()
    with pytest.raises(DataError, match=r"images: contains no image\. Give files that end in"):
        index_of(folder)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder__is_refused(folder: Path) -> None:
    (folder / "images/sub").mkdir(mode=0)
    with pytest.raises(DataError, match=r"images/sub: cannot be read \(Permission denied\)\. Allow reading it"):
        index_of(folder)


def test_unreadable_folder__is_refused__injected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "images/sub").mkdir()
    original = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"images/sub: cannot be read \(Permission denied\)\. Allow reading it"):
        index_of(folder)


def test_links__loops_are_not_followed_and_files_are(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "images/loop").symlink_to(folder / "images")
    (folder / "images/itself").symlink_to("itself")
    (folder / "images/linked.jpg").symlink_to(folder / "images/good.jpg")
    (folder / "images/nowhere.jpg").symlink_to(folder / "images/gone.jpg")
    (folder / "labels/linked.txt").write_text(BOX)
    index = index_of(folder)
    assert names_of(index) == ["good.jpg", "linked.jpg"]
    assert "1 linked folders are not followed" in caplog.text and "Name them in data.yaml" in caplog.text
    assert "nowhere.jpg: missing, or not a file" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_pipe_with_the_name_of_an_image__is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(folder / "images/pipe.jpg")
    assert names_of(index_of(folder)) == ["good.jpg"]
    assert "pipe.jpg: missing, or not a file" in caplog.text


def test_read_size__does_not_call_what_ultralytics_puts_in_the_place_of_pillow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(folder, "text.jpg", b"no image")
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("it would install packages"))
    assert names_of(index_of(folder)) == ["good.jpg"]
