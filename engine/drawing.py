"""Boxes and their names drawn into a picture, readable on a thumbnail and on a board of 4000 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from models.postprocess import Detections

COLOURS = [tuple(round(255 * part) for part in colour) for colour in matplotlib.colormaps["tab10"].colors]
MIN_FONT_PX = 11
MIN_SIDE_PX = 640  # smaller pictures are enlarged, or labels would hide the objects
Place = tuple[float, float, float, float]
WIDE_FONTS = ("Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "UnDotum", "Unifont")
"""Fonts with Korean letters, on Linux, Windows and macOS; none comes with Python."""


def draw_detections(image: np.ndarray, found: Detections, class_names: list[str]) -> np.ndarray:
    """A picture with a box and, where there is room, a name and score for each detection, at least `MIN_SIDE_PX` large.

    Line and letters grow with the picture, letters less where objects are small. A label goes above its box, below
    or inside, if possible where it covers no box; one that would cover another is left out: the better score wins.

    Args:
        image: uint8 (height, width, 3), RGB.
        found: Boxes in pixels of the picture, by descending score.
        class_names: By class number.
    """
    factor = -(-MIN_SIDE_PX // max(image.shape[:2]))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    boxes = found.boxes_xyxy_px.cpu().numpy() * factor
    classes, scores = found.classes.tolist(), found.scores.tolist()
    side = max(canvas.size)
    line_px = max(2, round(side / 1000))
    for box, c in zip(boxes[::-1], classes[::-1], strict=True):  # the best ones on top
        draw.rectangle(_in_order(box), outline=COLOURS[c % len(COLOURS)], width=line_px)

    font_px = _font_px(boxes, side)
    taken: list[Place] = []
    corners = boxes.tolist()
    for box, c, score in zip(boxes, classes, scores, strict=True):
        text = f"{class_names[c]} {score:.2f}"
        font = _font(font_px, text.isascii())
        size = draw.textlength(text, font) + font_px * 0.5, font_px * 1.3
        place = _free_place(box, size, canvas.size, taken, corners)
        if place is None:
            continue
        taken.append(place)
        colour = COLOURS[c % len(COLOURS)]
        draw.rectangle(place, fill=colour)
        middle = (place[1] + place[3]) / 2
        draw.text((place[0] + font_px * 0.25, middle), text, fill=_contrast(colour), font=font, anchor="lm")
    return np.asarray(canvas)


def _in_order(box: np.ndarray) -> list[float]:
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, max(left, right), max(top, bottom)]


def _font_px(boxes: np.ndarray, side: int) -> int:
    """Letters of a ninetieth of the picture, but no taller than a third of most objects' shorter side."""
    size = side / 90
    if len(boxes):
        size = min(size, 0.33 * float(np.median((boxes[:, 2:] - boxes[:, :2]).min(axis=1))))
    return max(MIN_FONT_PX, side // 250, round(size))


def _free_place(
    box: np.ndarray, size: tuple[float, float], frame: tuple[int, int], taken: list[Place], boxes: list[list[float]]
) -> Place | None:
    """Where a label of this size covers no other and lies within the picture: best where it covers no box either."""
    width, height = frame
    left = float(min(max(box[0], 0), max(width - size[0], 0)))
    right = float(min(box[2], width) - size[0])
    above, below, inside = float(box[1]) - size[1], float(box[3]), float(box[1])
    places = [(x, y, x + size[0], y + size[1]) for y in (above, below, inside) for x in (left, right)]
    free = [
        place
        for place in places
        if min(place) >= 0 and place[2] <= width and place[3] <= height and not any(_overlaps(place, x) for x in taken)
    ]
    clear = (place for place in free if not any(_overlaps(place, other) for other in boxes))
    return next(clear, free[0] if free else None)


def _overlaps(place: Sequence[float], other: Sequence[float]) -> bool:
    return place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]


def _contrast(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on the colour (luma of ITU-R BT.601)."""
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)


@cache
def _font(size_px: int, is_ascii: bool) -> ImageFont.FreeTypeFont:
    """Matplotlib's font, or one of the system's with more letters where the text needs them and there is one."""
    path: str | Path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    if not is_ascii:
        known = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        path = next((known[name] for name in WIDE_FONTS if name in known), path)
    return ImageFont.truetype(str(path), size_px)
