"""Draws the parts of a circuit board: chips, resistors, capacitors, soldered joints and their defects.

Each part is drawn upright on two transparent layers of its own and turned when it is placed. ``mm`` is the number of
pixels per millimeter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

Color = tuple[int, ...]

SOLDER: Color = (186, 190, 192)
LEAD: Color = (206, 208, 206)
WHITE: Color = (235, 236, 230)


@dataclass
class Part:
    """A part with its center in the middle of its layers."""

    flat: np.ndarray
    """uint8 (h, w, 4), RGBA: pads and solder, in the plane of the board."""
    body: np.ndarray
    """uint8 (h, w, 4), RGBA: everything above the board, which casts a shadow."""
    pins: list[tuple[float, float, float, float]] = field(default_factory=list)
    """The starts of traces: x and y from the center, and the direction away from the part."""
    height_px: float = 0.0
    """Length of the shadow."""
    reference: str = ""
    """Letter of the printed name: R, C, U or J."""


def draw_ic(rng: np.random.Generator, mm: float) -> Part:
    """A chip with leads along two or four sides."""
    is_quad = rng.random() < 0.4
    pitch = rng.uniform(0.9, 1.3) * mm
    num_leads = int(rng.integers(6, 10) if is_quad else rng.integers(4, 9))
    half_w = (num_leads + 0.5) * pitch / 2
    half_h = half_w if is_quad else rng.uniform(1.7, 2.6) * mm
    lead = rng.uniform(0.8, 1.2) * mm
    margin = lead + 0.3 * mm
    part = _empty_part(2 * (half_w + (margin if is_quad else 0.1 * mm)), 2 * (half_h + margin), "U", 0.9 * mm)
    sides = [(0, -1), (0, 1), (-1, 0), (1, 0)][: 4 if is_quad else 2]
    for normal in sides:
        reach = half_h if normal[0] == 0 else half_w
        for offset in (np.arange(num_leads) - (num_leads - 1) / 2) * pitch:
            _draw_lead(part, normal, float(offset), reach, lead, pitch, mm)
    shade = int(rng.integers(26, 52))
    corner = (half_w, half_h)
    _box(part.body, (-half_w, -half_h), corner, (shade + 34,) * 3)
    _box(part.body, (-half_w + 0.12 * mm, -half_h + 0.12 * mm), corner, (shade - 12,) * 3)
    inner = (half_w - 0.14 * mm, half_h - 0.14 * mm)
    _box(part.body, (-inner[0], -inner[1]), inner, (shade, shade, shade + 2))
    dot = (-half_w + 0.75 * mm, half_h - 0.75 * mm)
    _disc(part.body, dot, 0.32 * mm, (shade + 22,) * 3)
    _disc(part.body, (dot[0] + 0.06 * mm, dot[1] + 0.06 * mm), 0.27 * mm, (shade - 10,) * 3)
    lines = [f"{rng.choice(list('ALMNST'))}{rng.choice(list('DMPX'))}{rng.integers(100, 9999)}"]
    lines.append(f"{rng.integers(10, 26)}{rng.integers(10, 53)}{rng.choice(list('ABC'))}")
    gray = shade + int(rng.integers(60, 120))
    for row, text in enumerate(lines):
        y = (row - 0.5) * 1.2 * mm
        _text(part.body, text, (0.25 * mm, y), 0.85 * mm, (gray,) * 3, max_width=2 * half_w - 1.2 * mm)
    return part


def draw_resistor(rng: np.random.Generator, mm: float) -> Part:
    """A flat chip resistor: dark, white-rimmed, with a number."""
    length, width = [(2.0, 1.25), (2.6, 1.4), (3.2, 1.7)][rng.integers(3)]
    half_l, half_w = length * mm / 2, width * mm / 2
    part = _chip(half_l, half_w, mm, body=WHITE, cap=0.22, reference="R", height=0.35)
    dark = rng.integers(18, 46, 3) + np.array([0, 0, rng.integers(0, 26)])
    rim = 0.07 * mm
    film = (half_l * (1 - 0.24) - rim, half_w - rim)
    _box(part.body, (-film[0], -film[1]), film, tuple(int(value) for value in dark))
    number = f"{rng.integers(10, 99)}{rng.integers(0, 7)}"
    _text(part.body, number, (0, 0), 1.0 * half_w, WHITE, max_width=1.7 * film[0], bold=True)
    return part


def draw_capacitor(rng: np.random.Generator, mm: float) -> Part:
    """A ceramic chip, a tantalum block or an aluminium can."""
    kind = rng.random()
    if kind < 0.55:
        length, width = [(1.8, 1.1), (2.2, 1.35), (3.2, 1.8)][rng.integers(3)]
        tan = np.array([176, 138, 98]) + rng.integers(-22, 23) + rng.integers(-8, 9, 3)
        color = tuple(int(value) for value in tan)
        part = _chip(length * mm / 2, width * mm / 2, mm, body=color, cap=0.25, reference="C", height=0.8)
        glint = tuple(min(value + 28, 255) for value in color)
        _box(part.body, (-0.3 * length * mm, -0.36 * width * mm), (0.3 * length * mm, -0.2 * width * mm), glint)
        return part
    if kind < 0.75:
        return _draw_tantalum(rng, mm)
    return _draw_can(rng, mm)


def _draw_tantalum(rng: np.random.Generator, mm: float) -> Part:
    half_l, half_w = rng.uniform(1.7, 2.2) * mm, rng.uniform(0.9, 1.3) * mm
    yellow = (int(rng.integers(205, 240)), int(rng.integers(140, 175)), int(rng.integers(28, 70)))
    part = _chip(half_l, half_w, mm, body=yellow, cap=0.1, reference="C", height=1.1)
    stripe = tuple(value // 2 for value in yellow)
    _box(part.body, (-0.9 * half_l, -half_w), (-0.62 * half_l, half_w), stripe)
    text = f"{rng.integers(10, 48)}{rng.choice(list('AEJV'))}"
    _text(part.body, text, (0.15 * half_l, 0), 0.9 * half_w, (90, 50, 20), max_width=half_l, bold=True)
    return part


def _draw_can(rng: np.random.Generator, mm: float) -> Part:
    """An electrolytic capacitor from above: an aluminium disc with a black segment on a black base."""
    radius = rng.uniform(1.7, 2.7) * mm
    half = 1.06 * radius
    part = _empty_part(2 * (half + 0.8 * mm), 2 * (half + 0.1 * mm), "C", rng.uniform(1.2, 2.2) * mm)
    for side in (-1, 1):
        inside, outside = 0.6 * half, half + 0.75 * mm
        _pad(part.flat, sorted([side * inside, side * outside]), (-0.5 * mm, 0.5 * mm), mm)
        part.pins.append((side * outside, 0.0, float(side), 0.0))
    cut = 0.35 * half
    base = [(-half, -half), (half - cut, -half), (half, -half + cut), (half, half - cut)]
    base += [(half - cut, half), (-half, half)]
    cv2.fillPoly(part.body, [_points(part.body, base)], (34, 34, 36, 255))
    top = int(rng.integers(178, 214))
    for ring, shade in ((1.0, top - 70), (0.95, top - 12), (0.86, top - 34), (0.83, top)):
        _disc(part.body, (0, 0), ring * radius, (shade, shade, min(shade + 3, 255)))
    _disc(part.body, (-0.12 * radius, -0.14 * radius), 0.55 * radius, (top + 12,) * 3)
    angles = np.linspace(np.radians(128), np.radians(232), 24)
    segment = [(0.82 * radius * np.cos(a), 0.82 * radius * np.sin(a)) for a in angles]
    cv2.fillPoly(part.body, [_points(part.body, segment)], (30, 30, 34, 255))
    value = str(rng.choice(["100", "220", "47", "10", "330"]))
    for row, text in enumerate((value, "25V")):
        _text(part.body, text, (0.2 * radius, (row - 0.45) * 0.55 * radius), 0.36 * radius, (60,) * 3)
    return part


def draw_header(rng: np.random.Generator, mm: float) -> Part:
    """A row of soldered through-hole joints; the joints are drawn by `draw_joint`."""
    num_pins, pitch = int(rng.integers(3, 8)), 2.0 * mm
    part = _empty_part((num_pins + 0.1) * pitch, 1.1 * pitch, "J")
    for x in (np.arange(num_pins) - (num_pins - 1) / 2) * pitch:
        part.pins.append((float(x), -0.9 * mm, 0.0, -1.0))
    return part


def draw_joint(canvas: np.ndarray, center: tuple[float, float], mm: float) -> float:
    """A shiny cone of solder around a pin, on a gold pad; returns the radius of the pad in pixels."""
    radius = 0.82 * mm
    _shaded_disc(canvas, center, radius, (196, 160, 84), (214, 180, 104))
    _shaded_disc(canvas, center, 0.84 * radius, (112, 116, 120), (212, 215, 216))
    pin = (center[0] + 0.02 * mm, center[1] + 0.02 * mm)
    _disc_at(canvas, pin, 0.3 * radius, (96, 98, 100))
    _disc_at(canvas, pin, 0.24 * radius, (190, 190, 186))
    glint = (center[0] - 0.38 * radius, center[1] - 0.4 * radius)
    _disc_at(canvas, glint, 0.13 * radius, (250, 250, 248))
    return radius


def draw_void(rng: np.random.Generator, canvas: np.ndarray, center: tuple[float, float], mm: float) -> float:
    """A joint with a hole in its solder; returns the radius of the pad in pixels."""
    radius = draw_joint(canvas, center, mm)
    angle = rng.uniform(0, 2 * np.pi)
    pit = center + 0.12 * radius * np.array([np.cos(angle), np.sin(angle)])
    outline = _blob(rng, pit, rng.uniform(0.5, 0.6) * radius, roughness=0.2)
    cv2.fillPoly(canvas, [outline], (86, 66, 38))
    inner = (pit + (outline - pit) * 0.82 + 0.03 * mm).astype(np.int32)
    cv2.fillPoly(canvas, [inner], (22, 17, 12))
    return radius


def draw_solder_ball(canvas: np.ndarray, center: tuple[float, float], radius: float) -> None:
    """A loose bead of solder with its shadow."""
    _disc_at(canvas, (center[0] + 0.45 * radius, center[1] + 0.45 * radius), radius, (14, 16, 16))
    _shaded_disc(canvas, center, radius, (70, 74, 78), (226, 229, 230))
    _disc_at(canvas, (center[0] - 0.35 * radius, center[1] - 0.35 * radius), 0.26 * radius, (255, 255, 255))


def draw_bridge(
    rng: np.random.Generator,
    canvas: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    mm: float,
) -> tuple[float, float, float, float]:
    """A blob of solder that joins two neighboring leads; returns its box (x1, y1, x2, y2)."""
    middle, along = (start + stop) / 2, stop - start
    axes = (0.82 * float(np.linalg.norm(along)), rng.uniform(0.5, 0.68) * mm)
    outline = _blob(rng, middle, 1.0, 0.1, axes, np.arctan2(along[1], along[0]))
    cv2.fillPoly(canvas, [outline + int(0.1 * mm)], (24, 26, 26))
    for share, shade in ((1.0, 118), (0.86, 168), (0.68, 204)):
        ring = (middle + (outline - middle) * share - (1 - share) * 0.25 * mm).astype(np.int32)
        cv2.fillPoly(canvas, [ring], (shade, shade + 3, shade + 5))
    _disc_at(canvas, middle - 0.17 * mm, 0.13 * mm, (255, 255, 255))
    x, y, width, height = cv2.boundingRect(outline)
    return x, y, x + width, y + height


def _blob(
    rng: np.random.Generator,
    center: np.ndarray,
    radius: float,
    roughness: float,
    axes: tuple[float, float] = (1.0, 1.0),
    angle: float = 0.0,
) -> np.ndarray:
    """The outline of an uneven ellipse, int32 (24, 2)."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    waves = sum(rng.uniform(-1, 1) * np.cos(order * turn + rng.uniform(0, 2 * np.pi)) / order for order in (2, 3, 5))
    reach = radius * (1 + roughness * waves)
    local = np.stack([reach * axes[0] * np.cos(turn), reach * axes[1] * np.sin(turn)], axis=1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (center + local @ rotation).round().astype(np.int32)


def _empty_part(width: float, height: float, reference: str, height_px: float = 0.0) -> Part:
    shape = (2 * int(height / 2) + 3, 2 * int(width / 2) + 3, 4)  # odd: the center is a pixel
    return Part(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), [], height_px, reference)


def _chip(half_l: float, half_w: float, mm: float, body: Color, cap: float, reference: str, height: float) -> Part:
    """A block between two soldered pads; ``cap`` is the metal part of each half length."""
    part = _empty_part(2 * (half_l + 0.65 * mm), 2 * (half_w + 0.25 * mm), reference, height * mm)
    for side in (-1, 1):
        inside, outside = half_l * (1 - 1.6 * cap), half_l + 0.6 * mm
        _pad(part.flat, sorted([side * inside, side * outside]), (-half_w, half_w), mm)
        part.pins.append((side * outside, 0.0, float(side), 0.0))
    _box(part.body, (-half_l, -half_w), (half_l, half_w), LEAD)
    _box(part.body, (-half_l, 0.5 * half_w), (half_l, half_w), (158, 160, 160))
    reach = half_l * (1 - cap)
    _box(part.body, (-reach, -half_w), (reach, half_w), tuple(int(0.7 * value) for value in body))
    _box(part.body, (-reach, -half_w), (reach, 0.78 * half_w), body)
    return part


def _draw_lead(
    part: Part, normal: tuple[int, int], offset: float, reach: float, lead: float, pitch: float, mm: float
) -> None:
    """One gull-wing lead and its pad; ``offset`` along the side, ``reach`` from the center to the side."""
    (nx, ny), (tx, ty) = normal, (abs(normal[1]), abs(normal[0]))

    def bar(layer: np.ndarray, near: float, far: float, width: float, color: Color) -> None:
        a = (nx * near + tx * (offset - width / 2), ny * near + ty * (offset - width / 2))
        b = (nx * far + tx * (offset + width / 2), ny * far + ty * (offset + width / 2))
        _box(layer, a, b, color)

    bar(part.flat, reach, reach + lead + 0.25 * mm, 0.62 * pitch, (150, 152, 150))
    bar(part.flat, reach + 0.3 * lead, reach + lead + 0.18 * mm, 0.52 * pitch, SOLDER)
    bar(part.body, reach - 0.1 * mm, reach + lead, 0.38 * pitch, (150, 150, 150))
    bar(part.body, reach + 0.25 * lead, reach + lead, 0.34 * pitch, LEAD)
    bar(part.body, reach + 0.62 * lead, reach + 0.8 * lead, 0.3 * pitch, (246, 246, 244))
    tip = reach + lead
    part.pins.append((nx * tip + tx * offset, ny * tip + ty * offset, float(nx), float(ny)))


def _pad(layer: np.ndarray, xs: list[float], ys: tuple[float, float], mm: float) -> None:
    """A soldered pad: a dull rim and bright solder on it."""
    rim = 0.14 * mm
    _box(layer, (xs[0], ys[0] - rim), (xs[1], ys[1] + rim), (140, 140, 134))
    _box(layer, (xs[0] + rim, ys[0]), (xs[1] - rim, ys[1]), SOLDER)
    _box(layer, (xs[0] + rim, ys[0]), (xs[1] - rim, ys[0] + 0.35 * (ys[1] - ys[0])), (222, 225, 226))


def _points(layer: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
    """Points relative to the center, as pixels of the layer."""
    center = (np.array(layer.shape[1::-1]) - 1) / 2
    return (center + np.array(points)).round().astype(np.int32)


def _box(layer: np.ndarray, a: tuple[float, float], b: tuple[float, float], color: Color) -> None:
    p, q = _points(layer, [a, b]).tolist()
    cv2.rectangle(layer, p, q, (*color, 255), cv2.FILLED)


def _disc(layer: np.ndarray, center: tuple[float, float], radius: float, color: Color) -> None:
    cv2.circle(layer, _points(layer, [center])[0].tolist(), round(radius), (*color, 255), cv2.FILLED)


def _disc_at(canvas: np.ndarray, center: tuple[float, float], radius: float, color: Color) -> None:
    cv2.circle(canvas, (round(center[0]), round(center[1])), max(round(radius), 1), color, cv2.FILLED)


def _shaded_disc(canvas: np.ndarray, center: tuple[float, float], radius: float, edge: Color, top: Color) -> None:
    """A dome lit from the top left: discs from the edge's color to the top's."""
    for step in np.linspace(0, 1, 6):
        color = tuple(int(a + (b - a) * step) for a, b in zip(edge, top, strict=True))
        shift = 0.28 * radius * step
        _disc_at(canvas, (center[0] - shift, center[1] - shift), radius * (1 - 0.72 * step), color)


def _text(
    layer: np.ndarray,
    text: str,
    center: tuple[float, float],
    height: float,
    color: Color,
    max_width: float = float("inf"),
    bold: bool = False,
) -> None:
    """Print centered text on a layer: smaller if it would be too wide, nothing if it would be unreadable."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, cap_height), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(height / cap_height, max_width / width)
    if scale * cap_height < 5:
        return
    origin = _points(layer, [(center[0] - scale * width / 2, center[1] + scale * cap_height / 2)])[0]
    thickness = max(round(height / (6 if bold else 9)), 1)
    alpha = layer[..., 3].copy()  # smooth letters would make holes in it
    cv2.putText(layer, text, origin.tolist(), font, scale, (*color, 255), thickness, cv2.LINE_AA)
    layer[..., 3] = alpha
