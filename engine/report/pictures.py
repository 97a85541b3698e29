"""Sheets of images with boxes: training batches, true boxes beside detections, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.errors import DataError
from data.formats.image import read_image
from data.indexing.index import ImageIndex
from data.loading.batch import Batch
from engine.report.drawing import PAPER, Labels, Legend, draw_boxes, draw_legend, text_font
from engine.report.mistakes import FALSE, MISSED, RIGHT, ImageRecord, judge
from engine.report.style import INK, SHADE, class_color, drawable_text, short_names, without_middle

TILE_PX = 400
COLUMNS = 4
TILES = 16
"""Most images on a sheet of a training or validation batch."""
MISTAKE_TILES, MISTAKE_COLUMNS, MISTAKE_TILE_PX = 9, 3, 480
EXAMPLE_TILES, EXAMPLE_TILE_PX = 12, 480
CAPTION_PX = 20
FONT_PX = 12
LINE_PX = 2
LEGEND_FONT_PX = 15
GAP_PX = 4
JPEG_QUALITY = 88
KIND_COLORS = {MISSED: "#FF5050", FALSE: "#FFA000", RIGHT: "#40FF70"}


@dataclass(frozen=True)
class Mark:
    """A box to draw, in pixels of its image."""

    box_xyxy_px: NDArray
    text: str
    color: str


@dataclass(frozen=True)
class Tile:
    """One image of a sheet."""

    image: NDArray
    """uint8 (height, width, 3), RGB."""
    caption: str
    marks: list[Mark] = field(default_factory=list)


def draw_train_batch(batch: Batch, class_names: Sequence[str], path: Path) -> None:
    """Draw the first images of a window as the network gets them, with their boxes."""
    names = short_names(class_names)
    boxes, classes, owners = (tensor.numpy() for tensor in (batch.boxes_xyxy_px, batch.classes, batch.image_index))
    num_tiles = min(len(batch), TILES)
    tiles = []
    for i in range(num_tiles):
        marks = _class_marks(boxes[owners == i], classes[owners == i], names)
        tiles.append(Tile(batch.images[i].permute(1, 2, 0).numpy(), drawable_text(Path(batch.names[i]).name), marks))
    save_sheet(tiles, path, _class_legend(classes[owners < num_tiles], names))


def draw_examples(index: ImageIndex, class_names: Sequence[str], path: Path) -> None:
    """Draw `EXAMPLE_TILES` images that are spread evenly over an index, with their boxes."""
    names = short_names(class_names)
    tiles, shown = [], []
    for i in np.unique(np.linspace(0, len(index) - 1, EXAMPLE_TILES).round().astype(int)).tolist():
        image, caption = _read(index.path(i))
        boxes_rel, classes = index.labels(i)
        tiles.append(Tile(image, caption, _class_marks(boxes_rel * np.tile(image.shape[1::-1], 2), classes, names)))
        shown.append(classes)
    save_sheet(tiles, path, _class_legend(np.concatenate(shown), names), tile_px=EXAMPLE_TILE_PX)


def draw_truth(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> None:
    """Draw the true boxes of at most `TILES` images, under the same legend as `draw_found`."""
    names = short_names(class_names)
    tiles = []
    for record in records:
        image, caption = _read(record.path)
        tiles.append(Tile(image, f"{caption} (true)", _class_marks(record.truth[:, :4], record.truth[:, 4], names)))
    save_sheet(tiles, path, _record_legend(records, names, confidence))


def draw_found(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> None:
    """Draw the detections above a confidence in the same images, in the same order."""
    names = short_names(class_names)
    tiles = []
    for record in records:
        image, caption = _read(record.path)
        shown = record.above(confidence)[::-1]  # the highest score on top
        scores = [f" {score:.2f}" for score in shown[:, 5]]
        tiles.append(Tile(image, f"{caption} (found)", _class_marks(shown[:, :4], shown[:, 4], names, scores)))
    save_sheet(tiles, path, _record_legend(records, names, confidence))


def draw_mistakes(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> int:
    """Draw the images with the worst mistakes, the worst first.

    Args:
        records: All images of the validation set.
        class_names: By class id.
        confidence: Detections above it count.
        path: The file to write; it is not written if there are no mistakes.

    Returns:
        How many images have mistakes.
    """
    names = short_names(class_names)
    judged = [(judge(record, confidence), record) for record in records]
    wrong = sorted((pair for pair in judged if pair[0].severity > 0), key=lambda pair: -pair[0].severity)
    tiles = []
    for verdict, record in wrong[:MISTAKE_TILES]:
        image, caption = _read(record.path)
        marks = []
        for item in sorted(verdict.items, key=lambda item: (item.kind != RIGHT, item.score)):  # mistakes on top
            score = "" if item.kind == MISSED else f" {item.score:.2f}"
            text = "" if item.kind == RIGHT else f"{names[item.class_id]}{score}"
            marks.append(Mark(item.box_xyxy_px, text, KIND_COLORS[item.kind]))
        tiles.append(Tile(image, f"{verdict.num_missed} missed, {verdict.num_false} false: {caption}", marks))
    if tiles:
        save_sheet(tiles, path, KIND_COLORS, MISTAKE_COLUMNS, MISTAKE_TILE_PX)
    return len(wrong)


def save_sheet(
    tiles: Sequence[Tile], path: Path, legend: Legend, columns: int = COLUMNS, tile_px: int = TILE_PX
) -> None:
    """Write tiles into one file, row by row below a legend, each with its caption below."""
    columns = min(columns, max(len(tiles), 1))
    rows = max(-(-len(tiles) // columns), 1)
    cell_px = (tile_px + GAP_PX, tile_px + CAPTION_PX + GAP_PX)
    width = columns * cell_px[0] + GAP_PX
    strip = draw_legend(legend, width, LEGEND_FONT_PX)
    top = strip.height if legend else 0
    sheet = Image.new("RGB", (width, top + rows * cell_px[1] + GAP_PX), PAPER)
    sheet.paste(strip, (0, 0))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(_draw_tile(tile, tile_px), (column * cell_px[0] + GAP_PX, top + row * cell_px[1] + GAP_PX))
    sheet.save(path, quality=JPEG_QUALITY)


def _class_marks(boxes: NDArray, classes: NDArray, names: Sequence[str], scores: Sequence[str] = ()) -> list[Mark]:
    """Marks of boxes (N, 4) in the colors of their classes; ``scores`` are written behind the names."""
    texts = scores or [""] * len(boxes)
    rows = zip(boxes, classes.astype(int).tolist(), texts, strict=True)
    return [Mark(box, f"{names[c]}{text}", class_color(c)) for box, c, text in rows]


def _class_legend(classes: NDArray, names: Sequence[str]) -> Legend:
    return {names[c]: class_color(c) for c in np.unique(classes.astype(int)).tolist()}


def _record_legend(records: Sequence[ImageRecord], names: Sequence[str], confidence: float) -> Legend:
    """The legend of all classes that are true or found in some images."""
    columns = [rows[:, 4] for record in records for rows in (record.truth, record.above(confidence))]
    return _class_legend(np.concatenate(columns), names)


def _draw_tile(tile: Tile, tile_px: int) -> Image.Image:
    """Draw an image, scaled so that it fits into a square, with its marks and its caption."""
    height, width = tile.image.shape[:2]
    gain = tile_px / max(height, width)
    size = (max(round(width * gain), 1), max(round(height * gain), 1))
    cell = Image.new("RGB", (tile_px, tile_px + CAPTION_PX), PAPER)
    cell.paste(SHADE, (0, 0, tile_px, tile_px))
    picture = Image.fromarray(np.ascontiguousarray(tile.image)).resize(size, Image.Resampling.BILINEAR)
    _draw_marks(ImageDraw.Draw(picture), tile.marks, gain, size)
    cell.paste(picture, ((tile_px - size[0]) // 2, (tile_px - size[1]) // 2))
    font = text_font(tile.caption, FONT_PX)
    caption = without_middle(tile.caption, lambda shown: font.getlength(shown) <= tile_px - 4)
    ImageDraw.Draw(cell).text((2, tile_px + 2), caption, fill=INK, font=font)
    return cell


def _draw_marks(pen: ImageDraw.ImageDraw, marks: Sequence[Mark], gain: float, size_px: tuple[int, int]) -> None:
    """Draw all boxes, the last one on top. Then write names where there is room, beginning with the last box."""
    boxes = np.array([mark.box_xyxy_px for mark in marks], dtype=float).reshape(-1, 4) * gain
    draw_boxes(pen, boxes, [mark.color for mark in marks], LINE_PX)
    labels = Labels(pen, size_px, boxes, FONT_PX)
    for mark, box in zip(marks[::-1], boxes[::-1], strict=True):
        if mark.text:
            labels.write(mark.text, box, mark.color)


def _read(path: str) -> tuple[NDArray, str]:
    """An image and its caption. If the file cannot be read any more, the image is gray, so that the sheet is drawn."""
    caption = drawable_text(Path(path).name)
    try:
        return read_image(path), caption
    except DataError:
        return np.full((TILE_PX, TILE_PX, 3), 200, np.uint8), f"{caption} cannot be read"
