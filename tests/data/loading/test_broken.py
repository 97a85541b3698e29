"""Images that become unreadable after the scan: a few are replaced, many are an error."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.errors import DataError
from data.formats.image import read_image, read_size
from data.indexing.index import ImageIndex
from data.loading.broken import BrokenImages
from data.loading.cache import DecodedCache
from data.loading.source import ImageSource


def read(broken: BrokenImages, image: int) -> np.ndarray:
    """As an image source reads."""
    try:
        return read_image(broken.index.path(image))
    except DataError as error:
        return broken.replace(image, error)


def test_image_source__broken_images_are_gray_and_have_no_objects(
    index: ImageIndex, caplog: pytest.LogCaptureFixture
) -> None:
    source = ImageSource(index, image_size=64)
    assert len(source.load(3).classes) == 3
    Path(index.path(3)).write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        picture = source.load(3)
        source.load(3)
    assert picture.image.shape == (64, 50, 3) and np.unique(picture.image).tolist() == [114]
    assert picture.boxes_xyxy_px.shape == (0, 4) and picture.classes.shape == (0,) and source.broken.images == {3}
    assert len(source.load(0).classes) == 2
    assert caplog.text.count("003.png: not an image that OpenCV can read") == 1  # told once


@pytest.mark.parametrize("is_cached", [False, True])
def test_image_source__an_image_that_can_be_read_again_has_its_objects(index: ImageIndex, is_cached: bool) -> None:
    """After a network drive was away: an image without its boxes would teach that nothing is there."""
    cache = DecodedCache(len(index), 3 * 64**2) if is_cached else None
    source, file = ImageSource(index, 64, cache), Path(index.path(3))
    file.rename(file.with_suffix(".away"))
    assert len(source.load(3).classes) == 0
    file.with_suffix(".away").rename(file)
    for _ in range(2):
        picture = source.load(3)
        assert len(np.unique(picture.image)) > 1 and picture.classes.tolist() == [1, 0, 2]


def test_broken_images__many_are_an_error(index: ImageIndex) -> None:
    broken = BrokenImages(index)
    for image in (1, 2):
        Path(index.path(image)).unlink()
    read(broken, 1)
    with pytest.raises(DataError, match=r"002\.png: cannot be read .*\. 2 images have become unreadable"):
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
