"""Boxes and their names drawn into a picture, readable on a thumbnail and on a board of 4000 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from engine.report.style import class_colour, drawable_names, font_file, font_files
from models.postprocess import Detections

MIN_FONT_PX = 11
MIN_SIDE_PX = 640  # smaller pictures are enlarged, or labels would hide the objects
Place = tuple[float, float, float, float]


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
        draw.rectangle(_in_order(box), outline=class_colour(c), width=line_px)

    font_px = _font_px(boxes, side)
    names = drawable_names(class_names)
    labels = Labels(draw, canvas.size, boxes.tolist(), font_px)
    for box, c, score in zip(boxes, classes, scores, strict=True):
        labels.write(f"{names[c]} {score:.2f}", box, class_colour(c))
    return np.asarray(canvas)


class Labels:
    """Writes names beside boxes where there is room; a name without room is left out, so the important ones go first.

    A name covers no other, and a box only if there is no other place.
    """

    def __init__(
        self, draw: ImageDraw.ImageDraw, frame: tuple[int, int], boxes: Sequence[Sequence[float]], font_px: int
    ) -> None:
        """Begin a picture.

        Args:
            draw: Of the picture.
            frame: Its width and height.
            boxes: Corners of all boxes in it.
            font_px: Size of the letters.
        """
        self._draw, self._frame, self._boxes, self._font_px = draw, frame, boxes, font_px
        self._taken: list[Place] = []

    def write(self, text: str, box: Sequence[float], colour: str) -> None:
        """Write the name of a box on a ground of its colour."""
        font = text_font(text, self._font_px)
        size = self._draw.textlength(text, font) + self._font_px * 0.5, self._font_px * 1.3
        place = _free_place(box, size, self._frame, self._taken, self._boxes)
        if place is None:
            return
        self._taken.append(place)
        self._draw.rectangle(place, fill=colour)
        middle = place[0] + self._font_px * 0.25, (place[1] + place[3]) / 2
        self._draw.text(middle, text, fill=_contrast(colour), font=font, anchor="lm")


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
    box: Sequence[float],
    size: tuple[float, float],
    frame: tuple[int, int],
    taken: Sequence[Place],
    boxes: Sequence[Sequence[float]],
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


def _overlaps(place: Place, other: Sequence[float]) -> bool:
    return place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]


def _contrast(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour (luma of ITU-R BT.601)."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


@cache
def _font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)
