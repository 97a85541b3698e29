"""How pictures of a run look: one set of colours, and fonts that can write every class name that is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator, NullFormatter

from engine.report.memory_plots import INK, MUTED, PALETTE, RULE, SHADE

__all__ = ["INK", "MUTED", "PALETTE", "RULE", "SHADE"]
GOOD, BAD, DOUBTFUL = "#1a7f37", "#cf222e", "#bc4c00"
BASE_FONT = "DejaVu Sans"
OTHER_SCRIPTS = (
    "malgun",  # Windows
    "AppleSDGothicNeo",
    "AppleGothic",
    "NanumGothic",
    "NotoSansKR-Regular",
    "NotoSansCJK-Regular",
    "msyh",
    "YuGothR",
    "wqy-zenhei",
)
"""Files of fonts for what the base font lacks, Korean first, in the order in which they are tried."""


@cache
def font_files() -> tuple[str, ...]:
    """The base font, which comes with matplotlib, and those of `OTHER_SCRIPTS` that are installed."""
    installed = {Path(path).stem: path for path in font_manager.findSystemFonts()}
    others = [installed[stem] for stem in OTHER_SCRIPTS if stem in installed]
    for path in others:  # matplotlib's own list may be older than the font
        font_manager.fontManager.addfont(path)
    return (font_manager.findfont(BASE_FONT), *others)


def font_file(text: str) -> str | None:
    """A font file that has every character of a text; None if no installed font has."""
    return next((path for path in font_files() if _has_all(path, text)), None)


def drawable_names(class_names: Sequence[str]) -> list[str]:
    """Class names as pictures can show them: ``class 3`` where no installed font has the characters."""
    return [name if font_file(name) else f"class {number}" for number, name in enumerate(class_names)]


def shortened(name: str, most: int = 24) -> str:
    """A name for an axis or a legend."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def class_colour(class_id: int) -> str:
    """The colour of a class in every picture."""
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
    """A logarithmic y axis with plain numbers, for powers are mathematics, which `drawing` takes as text."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def title(axes: Axes, text: str, about: str = "") -> None:
    """A title on the left, with an optional second line in grey."""
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
