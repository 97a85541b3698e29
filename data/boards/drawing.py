"""Draws a circuit board as an inspection camera sees it, and says where its parts and solder defects are.

The board is planned first (which part lies where), then drawn from the bottom up at twice the size: copper
under the solder mask, print, pads, shadows, bodies, defects. Shrinking it smooths the edges; uneven light, a
little blur and sensor noise make a photograph of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from data.boards.parts import (
    WHITE,
    Color,
    Part,
    draw_bridge,
    draw_capacitor,
    draw_header,
    draw_ic,
    draw_joint,
    draw_resistor,
    draw_solder_ball,
    draw_void,
)

CLASS_NAMES = ("ic", "resistor", "capacitor", "solder_bridge", "solder_ball", "void")
IC, RESISTOR, CAPACITOR, SOLDER_BRIDGE, SOLDER_BALL, VOID = range(6)

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

SUPERSAMPLING = 2
GRID_PX = 4  # traces are kept apart on a grid this coarse
SOLDER_MASKS: list[tuple[Color, Color]] = [  # over bare laminate, over copper
    ((12, 64, 36), (32, 108, 60)),
    ((8, 50, 32), (24, 90, 54)),
    ((30, 76, 38), (58, 120, 60)),
    ((14, 38, 90), (32, 76, 146)),
    ((96, 18, 22), (148, 44, 42)),
    ((18, 20, 22), (50, 53, 56)),
]
DESKS: list[Color] = [(38, 36, 34), (150, 146, 138), (112, 84, 58), (70, 78, 88)]
LAMINATE_EDGE: Color = (176, 160, 112)
GOLD: Color = (206, 172, 96)
HOLE: Color = (24, 22, 18)


@dataclass
class PlacedPart:
    """A part and where it goes."""

    part: Part
    class_id: int | None
    center: np.ndarray
    """x, y in pixels of the canvas."""
    angle: float
    """Counterclockwise, in degrees; close to a multiple of 90."""

    @cached_property
    def area(self) -> Box:
        """What it takes up on the board, pads included."""
        half = np.array(self.part.flat.shape[1::-1]) / 2
        if round(self.angle / 90) % 2:
            half = half[::-1]
        return (*(self.center - half), *(self.center + half))

    def pins(self) -> np.ndarray:
        """(n, 4): x, y and outward direction of each pin, on the canvas."""
        turn = np.radians(self.angle)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        local = np.array(self.part.pins).reshape(-1, 2, 2) @ rotation.T
        local[:, 0] += self.center
        return local.reshape(-1, 4)


@dataclass
class Board:
    """The drawing and what has been planned on it."""

    rng: np.random.Generator
    size: int
    """Side of the canvas, in pixels."""
    mm: float
    """Pixels per millimeter."""
    mask_colors: tuple[Color, Color]
    area: np.ndarray
    """The board on the canvas (x1, y1, x2, y2): beyond lies the desk."""
    parts: list[PlacedPart] = field(default_factory=list)
    objects: list[tuple[int, Box]] = field(default_factory=list)
    """Class and box of each labeled object, on the canvas."""

    def is_free(self, box: Box, margin: float) -> bool:
        """Whether a box keeps its distance from all parts."""
        return not any(_overlaps(box, placed.area, margin) for placed in self.parts)


def draw_board(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one board.

    Args:
        rng: Decides everything about it.
        image_size: Width and height, in pixels.

    Returns:
        uint8 (image_size, image_size, 3), RGB; float32 (n, 4), corner boxes in pixels; int64 (n,), indices
        into ``CLASS_NAMES``.

    Memory: about 50 * image_size**2 bytes while drawing.
    """
    board = _plan_board(rng, SUPERSAMPLING * image_size)
    paths, vias = _route(board)
    canvas = _draw_copper(board, paths)
    _draw_holes(board, canvas, vias)
    _draw_print(board, canvas)
    _draw_parts(board, canvas)
    _draw_joints(board, canvas)
    _draw_bridges(board, canvas)
    _draw_solder_balls(board, canvas)
    _draw_desk(board, canvas)
    image = _photograph(rng, cv2.resize(canvas, (image_size, image_size), interpolation=cv2.INTER_AREA))
    classes = np.array([class_id for class_id, _ in board.objects], np.int64)
    boxes = np.array([box for _, box in board.objects], np.float32).reshape(-1, 4) / SUPERSAMPLING
    return image, boxes.clip(0, image_size), classes


def _plan_board(rng: np.random.Generator, size: int) -> Board:
    """Choose the board, its parts and room for them: big ones first, small ones in rows."""
    mm = size / rng.uniform(20, 30)
    inset = rng.uniform(1, 4, 4) * mm * (rng.random(4) < 0.15)
    area = np.array([inset[0], inset[1], size - inset[2], size - inset[3]])
    board = Board(rng, size, mm, SOLDER_MASKS[rng.integers(len(SOLDER_MASKS))], area)
    groups: list[tuple[Callable[[np.random.Generator, float], Part], int | None, int]] = []
    groups += [(draw_ic, IC, 1)] * int(rng.integers(1, 4))
    groups += [(draw_header, None, 1)] * int(rng.integers(1, 3))
    groups += [(draw_capacitor, CAPACITOR, int(rng.integers(1, 4))) for _ in range(rng.integers(3, 6))]
    groups += [(draw_resistor, RESISTOR, int(rng.integers(1, 5))) for _ in range(rng.integers(3, 7))]
    for draw, class_id, count in groups:
        _place_row(board, [draw(rng, mm) for _ in range(count)], class_id)
    return board


def _place_row(board: Board, parts: list[Part], class_id: int | None) -> None:
    """Place parts side by side, long sides together, anywhere free; give up after some tries."""
    rng, gap = board.rng, 0.45 * board.mm
    quarter_turns = int(rng.integers(4))
    heights = [part.flat.shape[0] for part in parts]
    span = np.array([max(part.flat.shape[1] for part in parts), sum(heights) + gap * (len(parts) - 1)])
    if quarter_turns % 2:
        span = span[::-1]
    lowest, highest = board.area[:2] + 0.4 * board.mm, board.area[2:] - 0.4 * board.mm - span
    if (lowest >= highest).any():
        return
    corners = (rng.uniform(lowest, highest) for _ in range(30))
    free = (corner for corner in corners if board.is_free((*corner, *(corner + span)), 0.9 * board.mm))
    corner = next(free, None)
    if corner is None:
        return
    start = 0.0
    for part, height in zip(parts, heights, strict=True):
        along = start + height / 2
        offset = [along, span[1] / 2] if quarter_turns % 2 else [span[0] / 2, along]
        angle = 90.0 * quarter_turns + rng.normal(0, 1.2)
        board.parts.append(PlacedPart(part, class_id, corner + offset, angle))
        start += height + gap


def _overlaps(a: Box, b: Box, margin: float) -> bool:
    return a[0] < b[2] + margin and b[0] < a[2] + margin and a[1] < b[3] + margin and b[1] < a[3] + margin


def _route(board: Board) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Traces that touch neither each other nor parts (buses, from pin to pin, short ends), and vias."""
    rng, mm = board.rng, board.mm
    side = -(-board.size // GRID_PX)
    occupied = np.zeros((side, side), np.uint8)
    for placed in board.parts:
        x1, y1, x2, y2 = (round(value / GRID_PX) for value in placed.area)
        cv2.rectangle(occupied, (x1, y1), (x2, y2), 1, cv2.FILLED)
    thickness = max(round(0.6 * mm / GRID_PX), 1)
    paths: list[np.ndarray] = []
    vias: list[np.ndarray] = []

    def lay(path: np.ndarray, from_pin: Sequence[np.ndarray] = (), to_pin: Sequence[np.ndarray] = ()) -> None:
        """Keep the path if there is room for it; an end continues to its pin or, without one, into a via."""
        wanted = np.zeros_like(occupied)
        cv2.polylines(wanted, [(path / GRID_PX).round().astype(np.int32)], False, 1, thickness)
        if not cv2.bitwise_and(wanted, occupied).any():
            cv2.bitwise_or(occupied, wanted, dst=occupied)
            paths.append(np.array([*from_pin, *path, *to_pin]).round().astype(np.int32))
            vias.extend(path[end] for end, pin in ((0, from_pin), (-1, to_pin)) if not len(pin))

    for _ in range(int(rng.integers(1, 4))):
        for path in _bus(rng, board.size, mm):
            lay(path)
    pins = np.concatenate([np.zeros((0, 4)), *[placed.pins() for placed in board.parts]])
    starts = pins[:, :2] + 0.85 * mm * pins[:, 2:]
    for pin, start in zip(pins, starts, strict=True):
        other = int(rng.integers(len(pins)))
        if 3 * mm < np.abs(starts[other] - start).max() < 16 * mm:
            lay(_bent(rng, start, starts[other]), [pin[:2]], [pins[other, :2]])
    for pin, start in zip(pins, starts, strict=True):
        reach = rng.uniform((0.3, 0.3), (4.0, 1.5)) * mm
        length, sideways = np.multiply(reach, [1, int(rng.integers(-1, 2))]).tolist()
        lay(_bent(rng, start, start + pin[2:] * (length + abs(sideways)) + pin[[3, 2]] * sideways), [pin[:2]])
    return paths, vias


def _bent(rng: np.random.Generator, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """A path of a straight part, a diagonal and a straight part, float (4, 2)."""
    delta = stop - start
    diagonal = np.abs(delta).min() * np.sign(delta)
    bend = start + (delta - diagonal) * rng.uniform(0.15, 0.85)
    return np.array([start, bend, bend + diagonal, stop])


def _bus(rng: np.random.Generator, size: int, mm: float) -> list[np.ndarray]:
    """Parallel traces across the board, with two parallel 45 degree bends."""
    pitch, count = rng.uniform(0.75, 1.0) * mm, int(rng.integers(3, 9))
    x0, x1 = sorted(rng.uniform(-0.2, 1.2, 2) * size)
    step = rng.uniform(2, 8) * mm * rng.choice([-1, 1])
    bend = rng.uniform(x0, max(x1 - abs(step), x0 + 1))
    y = rng.uniform(0.05, 0.95) * size
    shift = np.tan(np.pi / 8) * np.sign(step)  # keeps the distance of the traces the same in the diagonal
    paths = []
    for row in np.arange(count) * pitch:
        first = bend - row * shift
        points = [(x0, y), (first, y), (first + abs(step), y + step), (x1, y + step)]
        paths.append(np.array(points) + np.array([0, row]))
    return [path[:, ::-1] for path in paths] if rng.random() < 0.5 else paths


def _draw_copper(board: Board, paths: list[np.ndarray]) -> np.ndarray:
    """The canvas, with copper areas and traces under the solder mask."""
    rng, mm = board.rng, board.mm
    copper = np.zeros((board.size, board.size), np.uint8)
    for _ in range(int(rng.integers(0, 4))):
        center, half = rng.uniform(0, board.size, 2), rng.uniform(4, 10, 2) * mm
        cv2.fillPoly(copper, [_chamfered(center, half, 1.5 * mm)], 255)
    for value, width_mm in ((0, 0.8), (255, 0.26)):  # the gap round each trace, then the trace
        cv2.polylines(copper, paths, False, value, max(round(width_mm * mm), 2))
    copper = cv2.GaussianBlur(copper, (5, 5), 0)
    relief = cv2.filter2D(copper, cv2.CV_16S, np.array([[2, 1, 0], [1, 0, -1], [0, -1, -2]], np.float32) / -24)
    canvas = cv2.LUT(cv2.merge([copper] * 3), np.linspace(*board.mask_colors, 256).astype(np.uint8)[None])
    return cv2.add(canvas, cv2.merge([relief] * 3), dtype=cv2.CV_8U)


def _draw_holes(board: Board, canvas: np.ndarray, vias: list[np.ndarray]) -> None:
    """Plated holes: where traces end, here and there, and big ones for screws in some corners."""
    rng, mm = board.rng, board.mm
    stray = rng.uniform(0, board.size, (int(rng.integers(3, 14)), 2)).astype(np.int32)
    for x, y in [*vias, *stray]:
        cv2.circle(canvas, (int(x), int(y)), round(0.34 * mm), GOLD, cv2.FILLED)
        cv2.circle(canvas, (int(x), int(y)), round(0.16 * mm), HOLE, cv2.FILLED)
    for corner in board.area.reshape(2, 2)[rng.integers(0, 2, (int(rng.integers(0, 3)), 2)), [0, 1]]:
        inside = corner + np.where(corner < board.size / 2, 1, -1) * 2.2 * mm
        if board.is_free((*(inside - 1.6 * mm), *(inside + 1.6 * mm)), 0):
            for radius, color in ((1.6, GOLD), (1.05, HOLE)):
                cv2.circle(canvas, inside.astype(int).tolist(), round(radius * mm), color, cv2.FILLED)


def _chamfered(center: np.ndarray, half: np.ndarray, cut: float) -> np.ndarray:
    """A rectangle with its corners cut at 45 degrees, int32 (8, 2)."""
    w, h = half
    corners = [(-w + cut, -h), (w - cut, -h), (w, -h + cut), (w, h - cut)]
    corners += [(-x, -y) for x, y in corners]
    return (center + np.array(corners)).astype(np.int32)


def _draw_print(board: Board, canvas: np.ndarray) -> None:
    """The white print: outlines of some parts, and names where there is room."""
    rng, mm = board.rng, board.mm
    line = max(round(0.1 * mm), 1)
    names: list[Box] = []
    for number, placed in enumerate(board.parts, start=1):
        x1, y1, x2, y2 = (int(value) for value in placed.area)
        if rng.random() < 0.6:
            gap = round(0.1 * mm)
            cv2.rectangle(canvas, (x1 - gap, y1 - gap), (x2 + gap, y2 + gap), WHITE, line)
        text, scale = f"{placed.part.reference}{number}", 0.042 * mm
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, line)
        for x, y in ((x1, y1 - 3 * line), (x1, y2 + height + 3 * line), (x2 + 3 * line, y2)):
            name = (x, y - height, x + width, y)
            if board.is_free(name, 0) and not any(_overlaps(name, other, line) for other in names):
                names.append(name)
                cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, WHITE, line, cv2.LINE_AA)
                break


def _draw_parts(board: Board, canvas: np.ndarray) -> None:
    """Pads, then the shadow of all bodies, then the bodies."""
    shadow = np.zeros(canvas.shape[:2], np.uint8)
    bodies = []
    for placed in board.parts:
        flat, flat_corner = _turn(placed.part.flat, placed)
        body, corner = _turn(placed.part.body, placed)
        _paste(canvas, flat, flat[..., 3], flat_corner)
        shift = round(0.3 * placed.part.height_px)
        _paste(shadow, body[..., 3:], body[..., 3], (corner[0] + shift, corner[1] + shift))
        bodies.append((body, corner))
        if placed.class_id is not None:
            x, y, width, height = cv2.boundingRect(cv2.max(flat[..., 3], body[..., 3]))
            x, y = x + corner[0], y + corner[1]
            board.objects.append((placed.class_id, (x, y, x + width, y + height)))
    _darken(canvas, shadow, 0.22 * board.mm)
    for body, corner in bodies:
        _paste(canvas, body, body[..., 3], corner)


def _darken(canvas: np.ndarray, shadow: np.ndarray, blur_px: float) -> None:
    """Lay a soft shadow over the canvas; it is blurred at a quarter of the size, to be cheap."""
    small = cv2.resize(shadow, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), blur_px / 4), shadow.shape[::-1])
    light = cv2.merge([cv2.convertScaleAbs(soft, alpha=-0.62, beta=255)] * 3)
    cv2.multiply(canvas, light, dst=canvas, scale=1 / 255)


def _turn(layer: np.ndarray, placed: PlacedPart) -> tuple[np.ndarray, tuple[int, int]]:
    """A layer rotated to its angle, and where its top left corner goes."""
    height, width = layer.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), placed.angle, 1.0)
    cos, sin = np.abs(matrix[0, :2])
    new_w, new_h = int(width * cos + height * sin) + 1, int(width * sin + height * cos) + 1
    matrix[:, 2] += ((new_w - width) / 2, (new_h - height) / 2)
    corner = placed.center - (np.array([new_w, new_h]) - 1) / 2
    return cv2.warpAffine(layer, matrix, (new_w, new_h)), (round(corner[0]), round(corner[1]))


def _paste(canvas: np.ndarray, picture: np.ndarray, alpha: np.ndarray, corner: tuple[int, int]) -> None:
    """Copy where alpha is above one half; edges are smoothed by shrinking the canvas later."""
    x, y = corner
    top, left = max(-y, 0), max(-x, 0)
    region = canvas[y + top : y + alpha.shape[0], x + left : x + alpha.shape[1]]
    seen = (slice(top, top + region.shape[0]), slice(left, left + region.shape[1]))
    mask = cv2.compare(np.ascontiguousarray(alpha[seen]), 127, cv2.CMP_GT)
    channels = canvas.shape[2] if canvas.ndim == 3 else 1
    cv2.copyTo(np.ascontiguousarray(picture[seen][..., :channels]), mask, region)


def _draw_joints(board: Board, canvas: np.ndarray) -> None:
    """The soldered pins of the headers; some have a void."""
    for placed in board.parts:
        if placed.part.reference != "J":
            continue
        pins = placed.pins()
        for x, y in pins[:, :2] - pins[:, 2:] * 0.9 * board.mm:
            if board.rng.random() < 0.3:
                radius = draw_void(board.rng, canvas, (x, y), board.mm)
                board.objects.append((VOID, (x - radius, y - radius, x + radius, y + radius)))
            else:
                draw_joint(canvas, (x, y), board.mm)


def _draw_bridges(board: Board, canvas: np.ndarray) -> None:
    """Solder between neighboring leads of some chips."""
    for placed in board.parts:
        if placed.class_id != IC:
            continue
        pins = placed.pins()
        same_side = np.flatnonzero((np.abs(np.diff(pins[:, 2:], axis=0)) < 1e-6).all(axis=1))
        for first in board.rng.choice(same_side, int(board.rng.integers(0, 3)), replace=False):
            a, b = (pins[i, :2] - 0.2 * board.mm * pins[i, 2:] for i in (first, first + 1))
            board.objects.append((SOLDER_BRIDGE, draw_bridge(board.rng, canvas, a, b, board.mm)))


def _draw_solder_balls(board: Board, canvas: np.ndarray) -> None:
    """Stray beads, clear of the parts."""
    for _ in range(int(board.rng.integers(0, 6))):
        radius = board.rng.uniform(0.42, 0.7) * board.mm
        x, y = board.rng.uniform(board.area[:2] + 2 * radius, board.area[2:] - 2 * radius)
        box = (x - radius, y - radius, x + radius, y + radius)
        if board.is_free(box, 0.2 * board.mm):
            draw_solder_ball(canvas, (x, y), radius)
            board.objects.append((SOLDER_BALL, box))


def _draw_desk(board: Board, canvas: np.ndarray) -> None:
    """What is seen beyond the board, and the board's cut edge."""
    x1, y1, x2, y2 = board.area.astype(int).tolist()
    desk = DESKS[board.rng.integers(len(DESKS))]
    for strip in (canvas[:y1], canvas[y2:], canvas[:, :x1], canvas[:, x2:]):
        strip[:] = desk
    cv2.rectangle(canvas, (x1 - 1, y1 - 1), (x2, y2), LAMINATE_EDGE, max(round(0.12 * board.mm), 1))


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, a color cast, slight blur and noise."""
    size = image.shape[0]
    light = rng.uniform(0.75, 1.15) * rng.uniform(0.82, 1.18, (3, 3)).astype(np.float32)
    light = cv2.resize(light, (size, size), interpolation=cv2.INTER_CUBIC)
    lit = cv2.multiply(image, cv2.merge([light * gain for gain in rng.uniform(0.94, 1.06, 3)]), dtype=cv2.CV_8U)
    sharpness = rng.uniform(0.3, 0.75) * size / 320
    noise = rng.integers(-128, 128, image.shape, dtype=np.int8)
    return cv2.addWeighted(
        cv2.GaussianBlur(lit, (0, 0), sharpness), 1.0, noise, rng.uniform(0.01, 0.045), 0.0, dtype=cv2.CV_8U
    )
