"""Reading images of every kind, and noticing the ones that are cut off."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data.errors import DataError
from data.formats.image import read_image, read_size


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def jpeg_with_thumbnail(picture: np.ndarray) -> bytes:
    """A JPEG whose EXIF header holds another whole JPEG, as cameras write it."""
    _, thumbnail = cv2.imencode(".jpg", picture[:8, :8])
    _, content = cv2.imencode(".jpg", picture)
    payload = b"Exif\0\0" + thumbnail.tobytes()
    header = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    return content[:2].tobytes() + header + content[2:].tobytes()


@pytest.mark.parametrize("name", ["a.png", "with space and ünïcode.bmp", "a.tiff", "wrong-extension.jpg"])
def test_read_image__is_rgb(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    suffix = ".png" if "wrong" in name else Path(name).suffix
    (tmp_path / name).write_bytes(cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes())
    assert np.array_equal(read_image(tmp_path / name), pixels)


def test_read_image__jpeg_matches_opencv(tmp_path: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), pixels)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1", "CMYK"])
def test_read_image__any_kind_becomes_three_bytes_a_pixel(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        cv2.imwrite(str(file), pixels[..., 0].astype(np.uint16) * 257)
    else:
        Image.fromarray(pixels).convert(mode).save(file)
    image = read_image(file)
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8
    if mode == "I;16":
        assert np.abs(image[..., 1].astype(int) - pixels[..., 0]).max() <= 1  # 16 to 8 bits rounds


def test_read_image__turns_by_exif(tmp_path: Path, pixels: np.ndarray) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=orientation, quality=100, subsampling=0)
    upright = np.rot90(pixels, -1).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg") - upright).max() < 12  # JPEG at full quality


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("has_exif", [False, True])
def test_read_size__does_not_turn_by_xmp(tmp_path: Path, pixels: np.ndarray, kind: str, has_exif: bool) -> None:
    """OpenCV ignores XMP, which Lightroom and Photoshop write beside EXIF or leave behind without it."""
    exif = Image.Exif()
    if has_exif:
        exif[0x010F] = "a maker, but no orientation"
    file, xmp = tmp_path / "a.img", b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.fromarray(pixels).save(file, kind, exif=exif, **({"xmp": xmp} if kind == "JPEG" else {"pnginfo": text}))
    assert Image.open(file).getexif()[0x0112] == 6
    assert read_size(file) == read_image(file).shape[:2] == (40, 60)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
@pytest.mark.parametrize("kind", ["jpg", "png", "thumbnail"])
def test_read_image__rejects_truncated(tmp_path: Path, pixels: np.ndarray, kind: str, share: float) -> None:
    picture = cv2.resize(pixels, (300, 200))
    whole = jpeg_with_thumbnail(picture) if kind == "thumbnail" else cv2.imencode(f".{kind}", picture)[1].tobytes()
    file = tmp_path / "a.jpg"
    file.write_bytes(whole)
    assert read_image(file).shape == (200, 300, 3)
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"a\.jpg: the file is cut off\. Restore or remove"):
        read_image(file)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_read_image__accepts_bytes_after_the_end(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    content = cv2.imencode(suffix, pixels)[1].tobytes()
    (tmp_path / "a").write_bytes(content + b"some trailer")
    assert read_image(tmp_path / "a").shape == pixels.shape


def test_read_image__rejects_what_is_no_image(tmp_path: Path) -> None:
    for content, message in ((b"", "the file is empty"), (b"hello", "not an image that OpenCV can read")):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.png: {message}"):
            read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png: cannot be read \(No such file"):
        read_image(tmp_path / "b.png")
