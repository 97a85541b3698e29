"""Boxes and their names drawn into a picture, readable on a thumbnail and on a board of 4000 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from engine.report.style import INK, RIM, class_color, drawable_names, font_file, font_files, shortened
from models.detection.postprocess import Detections

MIN_FONT_PX = 11
MIN_SIDE_PX = 640  # smaller pictures are enlarged, or labels would hide the objects
MAX_HIDDEN_SHARE = 0.2  # of a box, by a name
MAX_NAMES_SHARE = 0.15  # of a picture: with more, one sees names instead of the board
MAX_LEGEND_ENTRIES = 24
PAPER = "#ffffff"
Place = tuple[float, float, float, float]
Legend = Mapping[str, str]
"""Colors by what they mean."""


def draw_detections(
    image: np.ndarray, found: Detections, class_names: list[str], has_legend: bool = False
) -> np.ndarray:
    """A picture with a box and, where there is room, a name and score for each detection, at least `MIN_SIDE_PX` large.

    Line and letters grow with the picture, letters less where objects are small. A name goes above its box, below
    or inside, where it covers no other name and hides no box; else it loses its score, or is left out: the better
    score wins. Where names would cover much of the picture, all are left out: colors say what is what.

    Args:
        image: uint8 (height, width, 3), RGB.
        found: Boxes in pixels of the picture, by descending score.
        class_names: By class number.
        has_legend: Add colors, names and counts below the picture if a name was left out; it is higher then.
    """
    factor = -(-MIN_SIDE_PX // max(image.shape[:2]))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    boxes = found.boxes_xyxy_px.cpu().numpy() * factor
    classes, scores = found.classes.tolist(), found.scores.tolist()
    side = max(canvas.size)
    line_px = max(2, round(side / 1000))
    colors = [class_color(c) for c in classes]
    draw_boxes(draw, boxes[::-1], colors[::-1], line_px)  # the best ones on top

    font_px = _font_px(boxes, side)
    names = [shortened(name) for name in drawable_names(class_names)]
    labels = Labels(draw, canvas.size, boxes, font_px)
    is_crowded = labels.share(names[c] for c in classes) > MAX_NAMES_SHARE
    is_named = [
        not is_crowded and (labels.write(f"{names[c]} {score:.2f}", box, color) or labels.write(names[c], box, color))
        for box, c, score, color in zip(boxes, classes, scores, colors, strict=True)
    ]
    if not has_legend or all(is_named):
        return np.asarray(canvas)
    legend = {f"{names[c]}: {count}": class_color(c) for c, count in Counter(classes).most_common()}
    strip = draw_legend(legend, canvas.width, max(MIN_FONT_PX + 2, round(side / 90)))
    return np.vstack([np.asarray(canvas), np.asarray(strip)])


def draw_boxes(draw: ImageDraw.ImageDraw, boxes: NDArray, colors: Sequence[str], line_px: int) -> None:
    """Frames in bright colors, the last on top, each in a dark rim that sets it off on light ground.

    Args:
        draw: Of the picture.
        boxes: (n, 4) corners, in its pixels.
        colors: Of each box.
        line_px: Width of a frame; its rim is half as wide.
    """
    rim_px = max(1, line_px // 2)
    corners = [_in_order(box) for box in boxes]
    for left, top, right, bottom in corners:
        rim = left - rim_px, top - rim_px, right + rim_px, bottom + rim_px
        draw.rectangle(rim, outline=RIM, width=line_px + 2 * rim_px)
    for box, color in zip(corners, colors, strict=True):
        draw.rectangle(box, outline=color, width=line_px)


def draw_legend(legend: Legend, width: int, font_px: int) -> Image.Image:
    """Colors and what they mean, as a strip of paper of a picture's width: as many in a row as there is room for."""
    row_px, gap_px = round(1.6 * font_px), round(0.3 * font_px)
    shown = list(legend.items())[:MAX_LEGEND_ENTRIES]
    if len(shown) < len(legend):
        shown.append((f"and {len(legend) - len(shown)} more", PAPER))
    entries, x, row = [], gap_px, 0
    for text, color in shown:
        length = round(text_font(text, font_px).getlength(text)) + 2 * font_px
        if x + length > width and x > gap_px:
            x, row = gap_px, row + 1
        entries.append((x, row, text, color))
        x += length + font_px
    strip = Image.new("RGB", (width, row_px * (row + 1) + gap_px), PAPER)
    pen = ImageDraw.Draw(strip)
    for x, row, text, color in entries:
        middle = row_px * (row + 0.5) + gap_px / 2
        rim = RIM if color != PAPER else PAPER
        pen.rectangle((x, middle - font_px / 2, x + font_px, middle + font_px / 2), fill=color, outline=rim)
        pen.text((x + 1.4 * font_px, middle), text, fill=INK, font=text_font(text, font_px), anchor="lm")
    return strip


class Labels:
    """Writes names beside boxes where there is room; a name without room is left out, so the important ones go first.

    A name covers no other; where there is no free place, it covers a small part of a box.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, frame: tuple[int, int], boxes: NDArray, font_px: int) -> None:
        """Begin a picture.

        Args:
            draw: Of the picture.
            frame: Its width and height.
            boxes: (n, 4) corners of all boxes in it.
            font_px: Size of the letters.
        """
        self._draw, self._frame, self._boxes, self._font_px = draw, frame, boxes, font_px
        self._taken: list[Place] = []

    def share(self, texts: Iterable[str]) -> float:
        """Of the picture that texts would cover all together."""
        return sum(width * height for width, height in map(self._size, texts)) / (self._frame[0] * self._frame[1])

    def _size(self, text: str) -> tuple[float, float]:
        return text_font(text, self._font_px).getlength(text) + self._font_px * 0.5, self._font_px * 1.3

    def write(self, text: str, box: Sequence[float] | NDArray, color: str) -> bool:
        """Write the name of a box on a ground of its color; whether there was room."""
        place = _free_place(box, self._size(text), self._frame, self._taken, self._boxes)
        if place is None:
            return False
        self._taken.append(place)
        self._draw.rectangle(place, fill=color)
        middle = place[0] + self._font_px * 0.25, (place[1] + place[3]) / 2
        self._draw.text(middle, text, fill=_contrast(color), font=text_font(text, self._font_px), anchor="lm")
        return True


def text_font(text: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font that has the letters of a text, if any that is installed has."""
    return _font(font_file(text) or font_files()[0], size_px)


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
    box: Sequence[float] | NDArray,
    size: tuple[float, float],
    frame: tuple[int, int],
    taken: Sequence[Place],
    boxes: NDArray | Sequence[Sequence[float]],
) -> Place | None:
    """Where a label of this size lies within the picture, covers no other and little of any box: best nothing of it."""
    width, height = frame
    left = float(min(max(box[0], 0), max(width - size[0], 0)))
    right = float(min(box[2], width) - size[0])
    above, below, inside = float(box[1]) - size[1], float(box[3]), float(box[1])
    places = [(x, y, x + size[0], y + size[1]) for y in (above, below, inside) for x in (left, right)]
    free = [
        place
        for place in places
        if min(place) >= 0 and place[2] <= width and place[3] <= height and _hidden_share(place, taken) == 0
    ]
    hidden = [_hidden_share(place, boxes) for place in free]
    least = min(hidden, default=1.0)
    return free[hidden.index(least)] if least <= MAX_HIDDEN_SHARE else None


def _hidden_share(place: Place, boxes: NDArray | Sequence[Sequence[float]]) -> float:
    """The largest part of any box that a place covers."""
    boxes_N4 = np.asarray(boxes, dtype=float).reshape(-1, 4)
    sides_N2 = np.minimum(boxes_N4[:, 2:], place[2:]) - np.maximum(boxes_N4[:, :2], place[:2])
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(1).prod(axis=1)
    return float((sides_N2.clip(0).prod(axis=1) / areas_N).max(initial=0))


def _overlaps(place: Place, other: Sequence[float]) -> bool:
    return place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]


def _contrast(color: str) -> str:
    """Black or white, whichever is easier to read on the color (luma of ITU-R BT.601)."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


@cache
def _font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)
