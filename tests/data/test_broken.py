"""Images that break after the scan: a few are forgiven, many are an error."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.broken import BrokenImages
from data.errors import DataError
from data.image import read_image, read_size
from data.index import ImageIndex


def read(broken: BrokenImages, image: int) -> np.ndarray:
    """As an image source reads."""
    try:
        return read_image(broken.index.path(image))
    except DataError as error:
        return broken.replace(image, error)


def test_broken_images__are_grey_and_have_no_objects(index: ImageIndex, caplog: pytest.LogCaptureFixture) -> None:
    broken = BrokenImages(index)
    assert np.array_equal(read(broken, 3), read_image(index.path(3))) and len(broken.labels(3)[0]) == 3
    Path(index.path(3)).write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        picture = read(broken, 3)
        read(broken, 3)
    assert picture.shape == (128, 100, 3) and picture.dtype == np.uint8 and np.unique(picture).tolist() == [114]
    boxes, classes = broken.labels(3)
    assert boxes.shape == (0, 4) and classes.shape == (0,) and broken.images == {3}
    assert len(broken.labels(0)[0]) == 2
    assert caplog.text.count("003.png: not an image that OpenCV can read") == 1  # told once


def test_broken_images__many_are_an_error(index: ImageIndex) -> None:
    broken = BrokenImages(index)
    for image in (1, 2):
        Path(index.path(image)).unlink()
    read(broken, 1)
    with pytest.raises(DataError, match=r"002\.png: cannot be read .*: with it 2 images have become unreadable"):
        read(broken, 2)


@pytest.mark.parametrize("num_images", [1, 99, 100, 5000])
def test_broken_images__limit_is_a_share_of_the_images(index: ImageIndex, num_images: int) -> None:
    many = ImageIndex(index.path_bytes, np.zeros(num_images + 1, np.int64), *[np.empty(0)] * 4)
    assert BrokenImages(many).max_images == max(num_images // 100, 1)


def test_read_image__jpeg_damaged_in_the_middle_is_used_as_far_as_it_decodes(tmp_path: Path) -> None:
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), (300, 200))
    content = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_size(tmp_path / "a.jpg") == (200, 300)
    decoded = read_image(tmp_path / "a.jpg").astype(int)
    assert np.abs(decoded[:80] - pixels[:80, :, ::-1]).mean() < 10  # the part above the damage
