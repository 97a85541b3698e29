"""Pictures with boxes: training batches, truth beside prediction, and the worst mistakes, as contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from engine.report.style import INK, SHADE, class_color, drawable_names, drawable_text, shortened

TILE_PX = 400
COLUMNS = 4
TILES = 16
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
    """A box to draw, in pixels of its picture."""

    box_xyxy_px: NDArray
    text: str
    color: str
    class_id: int = 0


@dataclass(frozen=True)
class Tile:
    """One picture of a contact sheet."""

    image: NDArray
    """uint8 (height, width, 3), RGB."""
    caption: str
    marks: list[Mark] = field(default_factory=list)


def draw_train_batch(batch: Batch, class_names: Sequence[str], path: Path) -> None:
    """Draw the first images of a window as the network gets them, with their boxes."""
    names = _names(class_names)
    boxes, classes, owners = (tensor.numpy() for tensor in (batch.boxes_xyxy_px, batch.classes, batch.image_index))
    tiles = []
    for i in range(min(len(batch), TILES)):
        mine = owners == i
        marks = [_class_mark(box, c, names) for box, c in zip(boxes[mine], classes[mine], strict=True)]
        tiles.append(Tile(batch.images[i].permute(1, 2, 0).numpy(), drawable_text(Path(batch.names[i]).name), marks))
    save_sheet(tiles, path, _class_legend(_classes_in(tiles), names))


def draw_examples(index: ImageIndex, class_names: Sequence[str], path: Path) -> None:
    """Draw images at equal distances in an index, with their boxes."""
    names = _names(class_names)
    tiles = []
    for i in np.unique(np.linspace(0, len(index) - 1, EXAMPLE_TILES).round().astype(int)).tolist():
        image, caption = _read(index.path(i))
        boxes_rel, classes = index.labels(i)
        boxes_px = boxes_rel * np.tile(image.shape[1::-1], 2)
        tiles.append(Tile(image, caption, [_class_mark(*pair, names) for pair in zip(boxes_px, classes, strict=True)]))
    save_sheet(tiles, path, _class_legend(_classes_in(tiles), names), tile_px=EXAMPLE_TILE_PX)


def draw_truth(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> None:
    """Draw the truth of at most `TILES` images, under the same legend as `draw_found`."""
    names = _names(class_names)
    tiles = []
    for record in records:
        image, caption = _read(record.path)
        marks = [_class_mark(row[:4], int(row[4]), names) for row in record.truth]
        tiles.append(Tile(image, f"{caption} (truth)", marks))
    save_sheet(tiles, path, _record_legend(records, names, confidence))


def draw_found(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> None:
    """Draw the detections in the same images, in the same places, above a confidence."""
    names = _names(class_names)
    tiles = []
    for record in records:
        image, caption = _read(record.path)
        shown = _shown(record, confidence)[::-1]  # the surest on top
        marks = [_class_mark(row[:4], int(row[4]), names, f" {row[5]:.2f}") for row in shown]
        tiles.append(Tile(image, f"{caption} (found)", marks))
    save_sheet(tiles, path, _record_legend(records, names, confidence))


def draw_mistakes(records: Sequence[ImageRecord], class_names: Sequence[str], confidence: float, path: Path) -> int:
    """Draw the images with the worst mistakes, worst first; returns how many images have any.

    Args:
        records: All images of the validation set.
        class_names: By class id.
        confidence: Detections above it count.
        path: Where the picture goes; not written if there are no mistakes.
    """
    names = _names(class_names)
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
            marks.append(Mark(item.box_xyxy_px, text, KIND_COLORS[item.kind]))
        tiles.append(Tile(image, f"{verdict.num_missed} missed, {verdict.num_false} false: {caption}", marks))
    if tiles:
        save_sheet(tiles, path, KIND_COLORS, MISTAKE_COLUMNS, MISTAKE_TILE_PX)
    return len(wrong)


def save_sheet(
    tiles: Sequence[Tile], path: Path, legend: Legend, columns: int = COLUMNS, tile_px: int = TILE_PX
) -> None:
    """Write tiles as one JPEG, row by row, each with its caption below, under a legend."""
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


def _classes_in(tiles: Sequence[Tile]) -> set[int]:
    return {mark.class_id for tile in tiles for mark in tile.marks}


def _class_legend(class_ids: Iterable[int], names: Sequence[str]) -> Legend:
    return {names[c]: class_color(c) for c in sorted(class_ids)}


def _record_legend(records: Sequence[ImageRecord], names: Sequence[str], confidence: float) -> Legend:
    """The classes that are true or found in some images."""
    columns = [part[:, 4] for record in records for part in (record.truth, _shown(record, confidence))]
    return _class_legend({int(c) for column in columns for c in column}, names)


def _shown(record: ImageRecord, confidence: float) -> NDArray:
    return record.detections[record.detections[:, 5] > confidence]


def _draw_tile(tile: Tile, tile_px: int) -> Image.Image:
    """The picture, fitted into a square with its long side, its marks, and the caption."""
    height, width = tile.image.shape[:2]
    gain = tile_px / max(height, width)
    size = (max(round(width * gain), 1), max(round(height * gain), 1))
    cell = Image.new("RGB", (tile_px, tile_px + CAPTION_PX), PAPER)
    cell.paste(SHADE, (0, 0, tile_px, tile_px))
    picture = Image.fromarray(np.ascontiguousarray(tile.image)).resize(size, Image.Resampling.BILINEAR)
    _draw_marks(ImageDraw.Draw(picture), tile.marks, gain, size)
    cell.paste(picture, ((tile_px - size[0]) // 2, (tile_px - size[1]) // 2))
    caption = _shortened(tile.caption, tile_px - 4, FONT_PX)
    ImageDraw.Draw(cell).text((2, tile_px + 2), caption, fill=INK, font=text_font(caption, FONT_PX))
    return cell


def _draw_marks(pen: ImageDraw.ImageDraw, marks: Sequence[Mark], gain: float, size: tuple[int, int]) -> None:
    """All boxes, the last on top; then names where there is room, the last first."""
    boxes = np.array([mark.box_xyxy_px for mark in marks], dtype=float).reshape(-1, 4) * gain
    draw_boxes(pen, boxes, [mark.color for mark in marks], LINE_PX)
    labels = Labels(pen, size, boxes, FONT_PX)
    for mark, box in zip(marks[::-1], boxes[::-1], strict=True):
        if mark.text:
            labels.write(mark.text, box, mark.color)


def _names(class_names: Sequence[str]) -> list[str]:
    return [shortened(name) for name in drawable_names(class_names)]


def _class_mark(box: NDArray, class_id: int, names: Sequence[str], more: str = "") -> Mark:
    return Mark(box, f"{names[class_id]}{more}", class_color(int(class_id)), int(class_id))


def _read(path: str) -> tuple[NDArray, str]:
    """A picture and its caption; a gray one if the file is gone meanwhile, for the rest is worth seeing."""
    try:
        return read_image(path), drawable_text(Path(path).name)
    except DataError:
        return np.full((TILE_PX, TILE_PX, 3), 200, np.uint8), f"{drawable_text(Path(path).name)} cannot be read"


def _shortened(text: str, width_px: int, font_px: int) -> str:
    """A text cut to a width; its beginning and its end stay."""
    font, shown = text_font(text, font_px), text
    while font.getlength(shown) > width_px and len(text) > 8:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shown = f"{text[: len(text) // 2]}…{text[len(text) // 2 :]}"
    return shown
