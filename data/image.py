"""Reads one image file into RGB bytes.

Whatever the file holds (grey, palette, alpha, 16 bits, an EXIF rotation), OpenCV turns it into upright
8-bit RGB. It also fills the missing rest of a cut-off file with grey and says so only on standard error, so
the end of JPEG and PNG files is looked for here.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data.errors import DataError

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file.

    Args:
        path: The file; any characters, any format that OpenCV decodes.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: If the file cannot be read, is no image or is cut off.
    """
    try:
        content = Path(path).read_bytes()  # cv2.imread fails on unusual characters under Windows
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): restore or remove the image") from None
    if not content:
        raise DataError(f"{path}: the file is empty: restore or remove the image and its label file")
    if _is_truncated(content):
        raise DataError(f"{path}: the file is cut off: restore or remove the image and its label file")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # for instance more pixels than OpenCV allows
        image = None
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read: convert or remove it and its label file")
    return image


def _is_truncated(content: bytes) -> bool:
    if content.startswith(JPEG_START):
        return content.find(JPEG_END, _jpeg_scan_start(content)) < 0
    if content.startswith(PNG_START):
        return PNG_END not in content[-4096:]  # some programs append a few bytes of their own
    return False


def _jpeg_scan_start(content: bytes) -> int:
    """Where the picture data begins: beyond the headers, which may hold a thumbnail with its own end."""
    position = len(JPEG_START)
    while position + 4 <= len(content) and content[position] == 0xFF:
        if content[position + 1] == JPEG_SCAN:
            break
        is_fill_byte = content[position + 1] == 0xFF
        position += 1 if is_fill_byte else 2 + int.from_bytes(content[position + 2 : position + 4])
    return position
