"""Pictures small enough to embed in a report or to send to a logger."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal, NamedTuple

from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MAX_BYTES = 200_000
STEPS = ((1400, 80), (1400, 65), (1200, 60), (1000, 50), (800, 40), (600, 30))
"""Largest width in pixels and quality, tried in this order until the picture is small enough."""
KINDS = {".png": PngImageFile, ".jpg": JpegImageFile}  # not Image.open: importing Ultralytics replaces it


class Picture(NamedTuple):
    """A picture as the content of a file."""

    content: bytes
    mime_type: str
    size: tuple[int, int]
    """Width and height in pixels."""


def compact(path: Path, kind: Literal["JPEG", "WEBP"]) -> Picture:
    """The content of a PNG or JPEG file; made narrower and encoded as ``kind`` if it has more than `MAX_BYTES`.

    Raises:
        OSError: If the file cannot be read.
    """
    content = path.read_bytes()
    with KINDS[path.suffix](io.BytesIO(content)) as image:
        if len(content) <= MAX_BYTES:
            return Picture(content, f"image/{'png' if path.suffix == '.png' else 'jpeg'}", image.size)
        original = image.convert("RGB")
    for width, quality in STEPS:
        smaller = original.copy()
        smaller.thumbnail((width, original.height))
        file = io.BytesIO()
        smaller.save(file, kind, quality=quality)
        if file.tell() <= MAX_BYTES:
            break
    return Picture(file.getvalue(), f"image/{kind.lower()}", smaller.size)
