"""How the pictures of a report look: one style, one font, figures without global state."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

FONT = "DejaVu Sans"
INK, SOFT, LINE = "#1b1f24", "#626c78", "#dde1e6"
TRAIN, HELD, TEST, BAD, GOOD = "#2358d6", "#e07b00", "#7a3fb5", "#c62828", "#2e8b57"
_STYLE: Any = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a class name is a dollar
    "axes.unicode_minus": True,
    "axes.edgecolor": "#aab2bc",
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": 110,
}


class LeftOut(Exception):
    """A picture cannot be made of these data; the text is the reason, a clause for the page."""


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the report, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Figure of a size in inches (110 pixels each) that lays itself out."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes.

    A figure without a layout of its own is grown to all that is drawn.
    """
    fitted = figure.get_layout_engine() is None
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(
        buffer,
        format="png",
        bbox_inches="tight" if fitted else None,
        pad_inches=0.1,
        metadata={"Software": None},
    )
    return buffer.getvalue()


def is_empty(axes: Axes) -> bool:
    """Say whether a panel holds nothing; then it says so itself, without ticks."""
    if axes.has_data():
        return False
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=SOFT)
    axes.set_xticks([])
    axes.set_yticks([])
    return True


def short(name: str, longest: int = 28) -> str:
    """A name as the font can draw it: one line, shortened in the middle, ▯ for missing glyphs."""
    known = _glyphs()
    text = unicodedata.normalize("NFC", name)
    text = "".join(c if ord(c) in known and c.isprintable() else "▯" for c in text)
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return text[: longest - 1 - tail] + "…" + text[-tail:]


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())
