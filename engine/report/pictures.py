"""Pictures with boxes: training batches, truth beside prediction, and the worst mistakes, as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from data.batch import Batch
from data.errors import DataError
from data.image import read_image
from engine.report.mistakes import FALSE, MISSED, RIGHT, ImageRecord, judge
from engine.report.style import BAD, DOUBTFUL, GOOD, class_colour, drawable_names, font_file, font_files

TILE_PX = 320
COLUMNS = 4
TILES = 16
MISTAKE_TILES, MISTAKE_COLUMNS, MISTAKE_TILE_PX = 9, 3, 480
CAPTION_PX = 18
FONT_PX = 12
GAP_PX = 4
JPEG_QUALITY = 88
INK_RGB, PAPER_RGB, EMPTY_RGB = "#24292f", "#ffffff", "#eef1f4"
KIND_COLOURS = {MISSED: BAD, FALSE: DOUBTFUL, RIGHT: GOOD}


@dataclass(frozen=True)
class Mark:
    """A box to draw, in pixels of its picture."""

    box_xyxy_px: NDArray
    text: str
    colour: str


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet."""

    image: NDArray
    """uint8 (height, width, 3), RGB."""
    caption: str
    marks: list[Mark] = field(default_factory=list)


def draw_train_batch(batch: Batch, class_names: Sequence[str], path: Path) -> None:
    """Draw the first images of a window as the network gets them, with their boxes."""
    names = drawable_names(class_names)
    boxes, classes, owners = (tensor.numpy() for tensor in (batch.boxes_xyxy_px, batch.classes, batch.image_index))
    tiles = []
    for i in range(min(len(batch), TILES)):
        mine = owners == i
        marks = [_class_mark(box, c, names) for box, c in zip(boxes[mine], classes[mine], strict=True)]
        tiles.append(Tile(batch.images[i].permute(1, 2, 0).numpy(), Path(batch.names[i]).name, marks))
    save_sheet(tiles, path)


def draw_validation_batch(
    records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, labels_path: Path
) -> None:
    """Draw the truth of some images, and into another file their detections, in the same places.

    Args:
        records: At most `TILES` images.
        class_names: By class id.
        confidence: Detections above it are drawn.
        labels_path: For the truth, ending in ``_labels.jpg``; the detections go beside it, into ``_pred.jpg``.
    """
    names = drawable_names(class_names)
    truth, found = [], []
    for record in records:
        image, caption = _read(record.path)
        marks = [_class_mark(row[:4], int(row[4]), names) for row in record.truth]
        truth.append(Tile(image, f"{caption} (truth)", marks))
        shown = record.detections[record.detections[:, 5] > confidence][::-1]  # the surest on top
        marks = [_class_mark(row[:4], int(row[4]), names, f" {row[5]:.2f}") for row in shown]
        found.append(Tile(image, f"{caption} (found)", marks))
    save_sheet(truth, labels_path)
    save_sheet(found, labels_path.with_name(labels_path.name.replace("_labels", "_pred")))


def draw_mistakes(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> int:
    """Draw the images with the worst mistakes, worst first; returns how many images have any.

    Args:
        records: All images of the validation set.
        class_names: By class id.
        confidence: Detections above it count.
        path: Where the picture goes; not written if there are no mistakes.
    """
    names = drawable_names(class_names)
    judged = [(judge(record, confidence), record) for record in records]
    wrong = sorted((pair for pair in judged if pair[0].severity > 0), key=lambda pair: -pair[0].severity)
    tiles = []
    for verdict, record in wrong[:MISTAKE_TILES]:
        image, caption = _read(record.path)
        order = sorted(verdict.items, key=lambda item: (item.kind != RIGHT, item.score))  # mistakes on top
        marks = []
        for item in order:
            score = "" if item.kind == MISSED else f" {item.score:.2f}"
            text = "" if item.kind == RIGHT else f"{names[item.class_id]}{score}"
            marks.append(Mark(item.box_xyxy_px, text, KIND_COLOURS[item.kind]))
        tiles.append(Tile(image, f"{verdict.num_missed} missed, {verdict.num_false} false: {caption}", marks))
    if tiles:
        save_sheet(tiles, path, MISTAKE_COLUMNS, MISTAKE_TILE_PX)
    return len(wrong)


def save_sheet(tiles: Sequence[Tile], path: Path, columns: int = COLUMNS, tile_px: int = TILE_PX) -> None:
    """Write tiles as one JPEG, row by row, each with its caption below."""
    columns = min(columns, max(len(tiles), 1))
    rows = max(-(-len(tiles) // columns), 1)
    cell_px = (tile_px + GAP_PX, tile_px + CAPTION_PX + GAP_PX)
    sheet = Image.new("RGB", (columns * cell_px[0] + GAP_PX, rows * cell_px[1] + GAP_PX), PAPER_RGB)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(_draw_tile(tile, tile_px), (column * cell_px[0] + GAP_PX, row * cell_px[1] + GAP_PX))
    sheet.save(path, quality=JPEG_QUALITY)


def _draw_tile(tile: Tile, tile_px: int) -> Image.Image:
    """The picture, fitted into a square with its long side, its marks, and the caption."""
    height, width = tile.image.shape[:2]
    gain = tile_px / max(height, width)
    size = (max(round(width * gain), 1), max(round(height * gain), 1))
    cell = Image.new("RGB", (tile_px, tile_px + CAPTION_PX), PAPER_RGB)
    cell.paste(EMPTY_RGB, (0, 0, tile_px, tile_px))
    picture = Image.fromarray(np.ascontiguousarray(tile.image)).resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for mark in tile.marks:
        _draw_mark(pen, Mark(np.asarray(mark.box_xyxy_px) * gain, mark.text, mark.colour), size)
    cell.paste(picture, ((tile_px - size[0]) // 2, (tile_px - size[1]) // 2))
    caption = _shortened(tile.caption, tile_px - 4)
    ImageDraw.Draw(cell).text((2, tile_px + 1), caption, fill=INK_RGB, font=_font(caption))
    return cell


def _draw_mark(pen: ImageDraw.ImageDraw, mark: Mark, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = (float(value) for value in mark.box_xyxy_px)
    pen.rectangle((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)), outline=mark.colour, width=2)
    if not mark.text:
        return
    font = _font(mark.text)
    left, top, right, bottom = pen.textbbox((0, 0), mark.text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(x1, 0), max(size[0] - width, 0))
    y = y1 - height if y1 >= height else min(max(y1, 0), max(size[1] - height, 0))
    pen.rectangle((x, y, x + width, y + height), fill=mark.colour)
    pen.text((x + 2 - left, y + 2 - top), mark.text, fill=_text_colour(mark.colour), font=font)


def _text_colour(background: str) -> str:
    red, green, blue = ImageColor.getrgb(background)[:3]
    return INK_RGB if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else PAPER_RGB


def _class_mark(box: NDArray, class_id: int, names: Sequence[str], more: str = "") -> Mark:
    return Mark(box, f"{names[class_id]}{more}", class_colour(int(class_id)))


def _read(path: str) -> tuple[NDArray, str]:
    """A picture and its caption; a grey one if the file is gone meanwhile, for the rest is worth seeing."""
    try:
        return read_image(path), Path(path).name
    except DataError:
        return np.full((TILE_PX, TILE_PX, 3), 200, np.uint8), f"{Path(path).name} cannot be read"


def _shortened(text: str, width_px: int) -> str:
    """A text cut to a width; its beginning and its end stay."""
    font, shown = _font(text), text
    while font.getlength(shown) > width_px and len(text) > 8:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shown = f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"
    return shown


def _font(text: str) -> ImageFont.FreeTypeFont:
    return _font_of(font_file(text) or font_files()[0])


@cache
def _font_of(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, FONT_PX)
