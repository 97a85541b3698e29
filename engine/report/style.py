"""How pictures of a run look: one set of colors, and fonts that can write every class name that is there.

Charts are on white paper, boxes on boards of any color: they have colors of their own.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator, NullFormatter

INK, MUTED, RULE, SHADE = "#24292f", "#57606a", "#d0d7de", "#eef1f4"
PALETTE = (
    "#0969da", "#8250df", "#1a7f37", "#bf8700", "#bf3989", "#57606a",
    "#54aeff", "#c297ff", "#6fdd8b", "#eac54f", "#ff80c8", "#afb8c1",
    "#0a3069", "#3e1f79", "#044f1e", "#633c01",
)  # fmt: skip
GOOD, BAD, DOUBTFUL = "#1a7f37", "#cf222e", "#bc4c00"
BOX_COLORS = (
    *("#FF7F75", "#4DA3FF", "#A0F000", "#FF70F6", "#00E5FF", "#FF9500", "#B48CFF", "#FFE600"),
    *("#FFFFFF", "#1FD67A", "#FF9EBB", "#D9A066"),
)
"""Of the first classes: bright, so that a dark rim sets them off on light boards, too."""
RIM = "#000000"
BASE_FONT = "DejaVu Sans"
OTHER_SCRIPTS = (
    "malgun",  # Windows
    "AppleSDGothicNeo",
    "AppleGothic",
    "NanumGothic",
    "NotoSansKR",
    "NotoSansCJK",
    "SourceHanSans",
    "UnDotum",
    "Baekmuk",
    "msyh",
    "simsun",
    "YuGothR",
    "msgothic",
    "Hiragino",
    "PingFang",
    "ipag",
    "TakaoGothic",
    "NotoSansJP",
    "NotoSansSC",
    "wqy-",
    "DroidSansFallback",
    "ARIALUNI",
    "unifont",
)
"""How the files of fonts begin for what the base font lacks, Korean first, in the order in which they are tried."""


@cache
def font_files() -> tuple[str, ...]:
    """The base font, which comes with matplotlib, and those of `OTHER_SCRIPTS` that are installed."""
    installed = sorted(font_manager.findSystemFonts(), key=lambda path: ("regular" not in path.lower(), path))
    others = []
    for start in OTHER_SCRIPTS:  # one of each, the regular one if it is there
        path = next((path for path in installed if Path(path).stem.lower().startswith(start.lower())), None)
        if path is not None and _can_be_used(path):
            others.append(path)
    return (font_manager.findfont(BASE_FONT), *others)


def _can_be_used(path: str) -> bool:
    try:
        font_manager.fontManager.addfont(path)  # matplotlib's own list may be older than the font
        _font(path)
    except (OSError, RuntimeError):  # damaged, or a kind that matplotlib does not read
        return False
    return True


def font_file(text: str) -> str | None:
    """A font file that has every character of a text; None if no installed font has."""
    return next((path for path in font_files() if _has_all(path, text)), None)


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Class names as pictures can show them, in one line: ``class 3`` where no installed font has the characters."""
    names = [" ".join(name.split()) for name in class_names]
    return [_unhidden(name) if name and font_file(name) else f"class {c}" for c, name in enumerate(names)]


def drawable_text(text: str) -> str:
    """A text in one line, with a mark in place of each character that no installed font has: the names of files."""
    text = " ".join(text.split())
    return text if font_file(text) else "".join(c if font_file(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _unhidden(name: str) -> str:
    """With a space before an underscore, for matplotlib leaves such names out of legends."""
    return f" {name}" if name.startswith("_") else name


def shortened(name: str, most: int = 24) -> str:
    """A name for an axis or a legend."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def class_color(class_id: int) -> str:
    """The color of a class's boxes; beyond the listed ones, golden steps round the hues keep neighbors apart."""
    if class_id < len(BOX_COLORS):
        return BOX_COLORS[class_id]
    rgb = colorsys.hls_to_rgb(class_id * 0.618034 % 1, 0.78, 1.0)
    return "#" + "".join(f"{round(255 * part):02X}" for part in rgb)


def chart_color(class_id: int) -> str:
    """The color of a class in charts."""
    return PALETTE[class_id % len(PALETTE)]


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with these fonts, and take ``$`` in names as it is."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # not every font has a bold face
    families = [_font(path).family_name for path in font_files()]
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure, independent of pyplot's state."""
    figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def tidy(axes: Axes, grid: Any = "y") -> None:
    """Quiet axes: no box, thin rules behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis=grid, color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_numbers(axes.yaxis)


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, for powers are mathematics, which `drawing` takes as text."""
    axis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    axis.set_minor_formatter(NullFormatter())


def title(axes: Axes, text: str, about: str = "") -> None:
    """A title on the left, with an optional second line in gray."""
    axes.set_title(text, loc="left", color=INK, fontweight="bold", fontsize=11, pad=20 if about else 8)
    if about:
        axes.annotate(
            about, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=8.5
        )


@lru_cache(maxsize=4096)
def _has_all(path: str, text: str) -> bool:
    font = _font(path)
    return all(font.get_char_index(ord(character)) for character in text if not character.isspace())


@cache
def _font(path: str) -> FT2Font:
    return FT2Font(path)
