"""Boxes and their names drawn into an image, readable on a thumbnail and on a board of 4000 pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from engine.report.style import INK, RIM, class_color, font_file, font_files, short_names
from models.detection.postprocess import Detections

MIN_FONT_PX = 11
MIN_SIDE_PX = 640  # smaller images are enlarged, because names would hide the objects
MAX_HIDDEN_SHARE = 0.2  # of a box that a name covers
MAX_NAMES_SHARE = 0.15  # of an image; more would hide the board
MAX_LEGEND_ENTRIES = 24
PAPER = "#ffffff"
Place = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
Legend = Mapping[str, str]
"""Color by meaning."""


def draw_detections(
    image: np.ndarray, found: Detections, class_names: list[str], has_legend: bool = False
) -> np.ndarray:
    """Draw a box for each detection and, where there is room, its name and score.

    Lines and letters grow with the image. A name is written above, below or inside its box, where it covers no other
    name and little of any box. If there is no room, the score is left out, then the whole name; detections with a
    higher score come first. If all names would cover much of the image, no name is written.

    Args:
        image: uint8 (height, width, 3), RGB.
        found: Boxes in pixels of the image, by descending score.
        class_names: By class id.
        has_legend: Whether to add a legend with counts below the image if a name was left out.

    Returns:
        The image with boxes, enlarged by a whole number if its long side is below `MIN_SIDE_PX`.
    """
    factor = -(-MIN_SIDE_PX // max(image.shape[:2]))
    canvas = Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    boxes = found.boxes_xyxy_px.cpu().numpy() * factor
    classes, scores = found.classes.tolist(), found.scores.tolist()
    side_px = max(canvas.size)
    colors = [class_color(c) for c in classes]
    draw_boxes(draw, boxes[::-1], colors[::-1], max(2, round(side_px / 1000)))  # the highest score on top

    names = short_names(class_names)
    labels = Labels(draw, canvas.size, boxes, _font_px(boxes, side_px))
    is_crowded = labels.share(names[c] for c in classes) > MAX_NAMES_SHARE
    is_named = [
        not is_crowded and (labels.write(f"{names[c]} {score:.2f}", box, color) or labels.write(names[c], box, color))
        for box, c, score, color in zip(boxes, classes, scores, colors, strict=True)
    ]
    if not has_legend or all(is_named):
        return np.asarray(canvas)
    legend = {f"{names[c]}: {count}": class_color(c) for c, count in Counter(classes).most_common()}
    strip = draw_legend(legend, canvas.width, max(MIN_FONT_PX + 2, round(side_px / 90)))
    return np.vstack([np.asarray(canvas), np.asarray(strip)])


def draw_boxes(draw: ImageDraw.ImageDraw, boxes: NDArray, colors: Sequence[str], line_px: int) -> None:
    """Draw bright frames, each in a dark rim that makes it visible on light boards. The last frame is on top.

    Args:
        draw: Draws into the image.
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels of the image.
        colors: The color of each box.
        line_px: Width of a frame. Its rim is half as wide.
    """
    rim_px = max(1, line_px // 2)
    corners = [(left, top, max(left, right), max(top, bottom)) for left, top, right, bottom in boxes.tolist()]
    for left, top, right, bottom in corners:
        rim = left - rim_px, top - rim_px, right + rim_px, bottom + rim_px
        draw.rectangle(rim, outline=RIM, width=line_px + 2 * rim_px)
    for box, color in zip(corners, colors, strict=True):
        draw.rectangle(box, outline=color, width=line_px)


def draw_legend(legend: Legend, width_px: int, font_px: int) -> Image.Image:
    """A white strip of the given width with each color and its meaning, in as many rows as they need."""
    row_px, gap_px = round(1.6 * font_px), round(0.3 * font_px)
    shown = list(legend.items())[:MAX_LEGEND_ENTRIES]
    if len(shown) < len(legend):
        shown.append((f"and {len(legend) - len(shown)} more", PAPER))
    entries, x, row = [], gap_px, 0
    for text, color in shown:
        length = round(text_font(text, font_px).getlength(text)) + 2 * font_px
        if x + length > width_px and x > gap_px:
            x, row = gap_px, row + 1
        entries.append((x, row, text, color))
        x += length + font_px
    strip = Image.new("RGB", (width_px, row_px * (row + 1) + gap_px), PAPER)
    pen = ImageDraw.Draw(strip)
    for x, row, text, color in entries:
        middle = row_px * (row + 0.5) + gap_px / 2
        rim = RIM if color != PAPER else PAPER
        pen.rectangle((x, middle - font_px / 2, x + font_px, middle + font_px / 2), fill=color, outline=rim)
        pen.text((x + 1.4 * font_px, middle), text, fill=INK, font=text_font(text, font_px), anchor="lm")
    return strip


class Labels:
    """Writes names beside boxes where there is room. Names that are written first get the best places."""

    def __init__(self, draw: ImageDraw.ImageDraw, size_px: tuple[int, int], boxes: NDArray, font_px: int) -> None:
        """Begin an image.

        Args:
            draw: Draws into the image.
            size_px: Width and height of the image.
            boxes: (N, 4) corners of all boxes in the image.
            font_px: Height of the letters.
        """
        self._draw, self._size_px, self._boxes, self._font_px = draw, size_px, boxes, font_px
        self._taken: list[Place] = []

    def share(self, texts: Iterable[str]) -> float:
        """The share of the image that all texts together would cover."""
        return sum(width * height for width, height in map(self._size, texts)) / (self._size_px[0] * self._size_px[1])

    def _size(self, text: str) -> tuple[float, float]:
        return text_font(text, self._font_px).getlength(text) + self._font_px * 0.5, self._font_px * 1.3

    def write(self, text: str, box: ArrayLike, color: str) -> bool:
        """Write the name of a box on a rectangle of its color. Return whether there was room."""
        place = _free_place(box, self._size(text), self._size_px, self._taken, self._boxes)
        if place is None:
            return False
        self._taken.append(place)
        self._draw.rectangle(place, fill=color)
        start = place[0] + self._font_px * 0.25, (place[1] + place[3]) / 2
        self._draw.text(start, text, fill=_contrast(color), font=text_font(text, self._font_px), anchor="lm")
        return True


def text_font(text: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font that has every character of a text; the base font if no installed font has them all."""
    return _font(font_file(text) or font_files()[0], size_px)


def _font_px(boxes: np.ndarray, side_px: int) -> int:
    """Letters of a ninetieth of the image, but at most a third of the median shorter side of a box."""
    size = side_px / 90
    if len(boxes):
        size = min(size, 0.33 * float(np.median((boxes[:, 2:] - boxes[:, :2]).min(axis=1))))
    return max(MIN_FONT_PX, side_px // 250, round(size))


def _free_place(
    box: ArrayLike, size_px: tuple[float, float], frame_px: tuple[int, int], taken: ArrayLike, boxes: ArrayLike
) -> Place | None:
    """The place for a name at ``box`` that covers no ``taken`` place and least of any of ``boxes``.

    Returns:
        None if no place is within the frame, or each covers more than `MAX_HIDDEN_SHARE` of a box.
    """
    x1, y1, x2, y2 = np.asarray(box, dtype=float).tolist()
    (width, height), (frame_width, frame_height) = size_px, frame_px
    left = min(max(x1, 0.0), max(frame_width - width, 0.0))
    right = min(x2, float(frame_width)) - width
    places = [(x, y, x + width, y + height) for y in (y1 - height, y2, y1) for x in (left, right)]
    free = [
        place
        for place in places
        if min(place) >= 0 and place[2] <= frame_width and place[3] <= frame_height and _hidden_share(place, taken) == 0
    ]
    hidden = [_hidden_share(place, boxes) for place in free]
    least = min(hidden, default=1.0)
    return free[hidden.index(least)] if least <= MAX_HIDDEN_SHARE else None


def _hidden_share(place: Place, boxes: ArrayLike) -> float:
    """The largest share of any box that a place covers."""
    boxes_N4 = np.asarray(boxes, dtype=float).reshape(-1, 4)
    sides_N2 = np.minimum(boxes_N4[:, 2:], place[2:]) - np.maximum(boxes_N4[:, :2], place[:2])
    areas_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(1).prod(axis=1)
    return float((sides_N2.clip(0).prod(axis=1) / areas_N).max(initial=0))


def _contrast(color: str) -> str:
    """Black or white, whichever is easier to read on the color (luma of ITU-R BT.601)."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


@cache
def _font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)
