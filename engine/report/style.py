"""How pictures of a run look: one set of colors, and fonts that have the characters of every class name.

Charts are on white paper. Boxes are drawn on boards of any color, so boxes have colors of their own.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator, NullFormatter

INK, MUTED, RULE, SHADE = "#24292f", "#57606a", "#d0d7de", "#eef1f4"
PALETTE = (
    "#0969da", "#8250df", "#1a7f37", "#bf8700", "#bf3989", "#57606a",
    "#54aeff", "#c297ff", "#6fdd8b", "#eac54f", "#ff80c8", "#afb8c1",
    "#0a3069", "#3e1f79", "#044f1e", "#633c01",
)  # fmt: skip
"""Colors of lines and bars in charts."""
GOOD, BAD = "#1a7f37", "#cf222e"
BOX_COLORS = (
    "#FF7F75", "#4DA3FF", "#A0F000", "#FF70F6", "#00E5FF", "#FF9500", "#B48CFF", "#FFE600",
    "#FFFFFF", "#1FD67A", "#FF9EBB", "#D9A066",
)  # fmt: skip
"""Box colors of the first classes. They are bright, so that a dark rim makes them visible on light boards as well."""
RIM = "#000000"
BASE_FONT = "DejaVu Sans"
OTHER_SCRIPTS = (
    "malgun", "AppleSDGothicNeo", "AppleGothic", "NanumGothic", "NotoSansKR", "NotoSansCJK", "SourceHanSans",
    "UnDotum", "Baekmuk", "msyh", "simsun", "YuGothR", "msgothic", "Hiragino", "PingFang", "ipag", "TakaoGothic",
    "NotoSansJP", "NotoSansSC", "wqy-", "DroidSansFallback", "ARIALUNI", "unifont",
)  # fmt: skip
"""First letters of font files that have Asian characters, in the order in which they are tried; Korean comes first."""


@cache
def font_files() -> tuple[str, ...]:
    """Paths of the base font, which comes with matplotlib, and of the installed fonts in `OTHER_SCRIPTS`."""
    installed = sorted(font_manager.findSystemFonts(), key=lambda path: ("regular" not in path.lower(), path))
    others = []
    for start in OTHER_SCRIPTS:
        path = next((path for path in installed if Path(path).stem.lower().startswith(start.lower())), None)
        if path is not None and _can_be_used(path):
            others.append(path)
    return (font_manager.findfont(BASE_FONT), *others)


def _can_be_used(path: str) -> bool:
    try:
        font_manager.fontManager.addfont(path)  # the font may be newer than matplotlib's list of fonts
        _font(path)
    except (OSError, RuntimeError):  # the file is damaged, or matplotlib cannot read its format
        return False
    return True


def font_file(text: str) -> str | None:
    """Path of a font that has every character of ``text``; None if no installed font has them all."""
    return next((path for path in font_files() if _has_all(path, text)), None)


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Class names on one line each; ``class 3`` instead of a name that no installed font can write."""
    names = [" ".join(name.split()) for name in class_names]
    return [_visible(name) if name and font_file(name) else f"class {c}" for c, name in enumerate(names)]


def short_names(class_names: Sequence[str]) -> list[str]:
    """The names of `drawable_names`, cut to a length that fits an axis, a legend or a box."""
    return [shortened(name) for name in drawable_names(class_names)]


def drawable_text(text: str) -> str:
    """A text on one line, with a replacement mark for each character that no installed font has."""
    text = " ".join(text.split())
    return text if font_file(text) else "".join(c if font_file(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _visible(name: str) -> str:
    """Put a space before a leading underscore, because matplotlib leaves names with one out of legends."""
    return f" {name}" if name.startswith("_") else name


def shortened(name: str, max_characters: int = 24) -> str:
    """A name whose end is replaced by an ellipsis if the name is too long."""
    return name if len(name) <= max_characters else f"{name[: max_characters - 1]}…"


def without_middle(text: str, fits: Callable[[str], bool]) -> str:
    """A text in whose middle an ellipsis replaces as many characters as needed until the text fits."""
    shown, half = text, len(text) // 2
    while not fits(shown) and half > 1:
        half -= 1
        shown = f"{text[:half]}…{text[-half:]}"
    return shown


def class_color(class_id: int) -> str:
    """The color of a class's boxes. Classes beyond `BOX_COLORS` get hues that differ from their neighbors'."""
    if class_id < len(BOX_COLORS):
        return BOX_COLORS[class_id]
    rgb = colorsys.hls_to_rgb(class_id * 0.618034 % 1, 0.78, 1.0)  # the golden ratio spreads the hues
    return "#" + "".join(f"{round(255 * part):02X}" for part in rgb)


def chart_color(class_id: int) -> str:
    """The color of a class in charts."""
    return PALETTE[class_id % len(PALETTE)]


@contextmanager
def drawing() -> Iterator[None]:
    """Draw charts with the fonts of `font_files`, and show ``$`` in names as it is."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns of fonts without a bold face
    families = [_font(path).family_name for path in font_files()]
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that does not touch pyplot's global state. Sizes are in inches."""
    figure = Figure(figsize=(width_in, height_in), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def tidy(axes: Axes, x: str = "", y: str = "", grid: Literal["y", "both"] = "y") -> None:
    """Draw axes with the labels ``x`` and ``y``, without a box and with thin grid lines behind the data."""
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis=grid, color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic with plain numbers, because `drawing` would show powers as raw TeX."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def title(axes: Axes, text: str, about: str = "") -> None:
    """Write a title on the left, with an optional second line in gray."""
    axes.set_title(text, loc="left", color=INK, fontweight="bold", fontsize=11, pad=20 if about else 8)
    if about:
        axes.annotate(
            about, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=8.5
        )


def legend_below(axes: Axes) -> None:
    """Write the legend of an axes below the whole figure, in three columns."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)


@lru_cache(maxsize=4096)
def _has_all(path: str, text: str) -> bool:
    font = _font(path)
    return all(font.get_char_index(ord(character)) for character in text if not character.isspace())


@cache
def _font(path: str) -> FT2Font:
    return FT2Font(path)
