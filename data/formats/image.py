"""Reads an image file into RGB bytes, or only its size.

OpenCV turns every content (gray, palette, alpha, 16 bits, an EXIF rotation) into upright 8-bit RGB. It also fills the
missing rest of a cut-off file with gray and reports that only on standard error, so this module looks for the end of
JPEG and PNG files. The content decides the format, not the suffix.
"""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from data.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"
PNG_HEADER_BYTES = 8
TAIL_BYTES = 4096  # some programs append a few bytes behind the end
MIN_SIDE_PX = 10  # as in Ultralytics
MAX_PIXELS = 178_956_970  # 0.5 GiB decoded, in each worker; Pillow's limit for decompression bombs
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file of any format that OpenCV decodes.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: If the file cannot be read, is no image or is cut off.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: Path | str) -> bytes:
    """The unchecked content of an image file.

    Raises:
        DataError: If the file cannot be read or is empty.
    """
    try:
        content = Path(path).read_bytes()  # cv2.imread fails on unusual characters under Windows
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Restore or remove the image.") from None
    if not content:
        raise DataError(f"{path}: the file is empty. Restore or remove the image and its label file.")
    return content


def decode_image(content: bytes, path: Path | str) -> np.ndarray:
    """Decode the content of the image file at ``path``, which only messages use.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: If it is no image or is cut off.
    """
    if _is_truncated(content):
        raise DataError(f"{path}: the file is cut off. Restore or remove the image and its label file.")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # for instance more pixels than OpenCV allows
        image = None
    if image is None or image.ndim != 3:  # gray floats have two axes
        raise DataError(f"{path}: not an image that OpenCV can read. Convert or remove it and its label file.")
    return image


def read_size(path: Path | str) -> tuple[int, int]:
    """Size of an image as `read_image` returns it.

    The first and last bytes of JPEG and PNG files suffice. Other files, which are rare, are decoded, because only that
    shows that they are whole.

    Returns:
        Height and width in pixels, upright.

    Raises:
        DataError: If `read_image` would refuse the file, or if it has a side below `MIN_SIDE_PX` or more than
            `MAX_PIXELS` pixels. Damage in the middle of a JPEG or PNG file remains unseen.
    """
    header = _read_header(path)
    if header is None:
        height, width = read_image(path).shape[:2]
    else:
        height, width = header
    if height * width > MAX_PIXELS:
        raise DataError(f"{path}: the image has more than {MAX_PIXELS} pixels. Resize it or cut it into tiles.")
    if header is not None and _is_file_truncated(path):
        raise DataError(f"{path}: the file is cut off. Restore or remove the image and its label file.")
    if min(height, width) < MIN_SIDE_PX:
        raise DataError(f"{path}: {width} x {height} pixels: a side is below {MIN_SIDE_PX} pixels. Remove it.")
    return height, width


def _read_header(path: Path | str) -> tuple[int, int] | None:
    """Upright height and width of a JPEG or PNG file; None for other files and for broken headers.

    Pillow's readers are called by name: importing Ultralytics replaces ``Image.open`` by a function that installs
    packages when it meets a file that is no image.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(PNG_START))
            file.seek(0)
            if start == PNG_START:
                image: ImageFile = PngImageFile(file)
            elif start.startswith(JPEG_START):
                image = JpegImageFile(file)
            else:
                return None
            exif = Exif()  # ``image.getexif()`` also reads XMP, which OpenCV does not
            exif.load(image.info.get("exif", b""))
            orientation = exif.get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):  # Pillow raises all of these
        return None
    width, height = image.size
    return (width, height) if orientation in TURNED else (height, width)


def _is_file_truncated(path: Path | str) -> bool:
    """As `_is_truncated` for a file; reads all of it only if the end is not where it should be."""
    with Path(path).open("rb") as file:
        start = file.read(len(PNG_START))
        file.seek(-min(TAIL_BYTES, file.seek(0, 2)), 2)
        tail = file.read()
    has_end = tail.endswith(JPEG_END) if start.startswith(JPEG_START) else start == PNG_START and PNG_END in tail
    return not has_end and _is_truncated(read_bytes(path))


def _is_truncated(content: bytes) -> bool:
    if content.startswith(JPEG_START):
        return not content.endswith(JPEG_END) and content.find(JPEG_END, _jpeg_scan_start(content)) < 0
    if content.startswith(PNG_START):
        return PNG_END not in content[-TAIL_BYTES:] and not _has_png_end(content)
    return False


def _has_png_end(content: bytes) -> bool:
    """Whether the chunks lead to the end; a program may have appended any number of bytes behind it."""
    position = PNG_HEADER_BYTES
    while position + 8 <= len(content):
        if content[position + 4 : position + 8] == PNG_END:
            return True
        position += 12 + int.from_bytes(content[position : position + 4])  # length, kind, data, checksum
    return False


def _jpeg_scan_start(content: bytes) -> int:
    """Position of the pixel data, behind the headers, which may hold a thumbnail with an end mark."""
    position = len(JPEG_START)
    while position + 4 <= len(content) and content[position] == 0xFF:
        if content[position + 1] == JPEG_SCAN:
            break
        is_fill_byte = content[position + 1] == 0xFF
        position += 1 if is_fill_byte else 2 + int.from_bytes(content[position + 2 : position + 4])
    return position
