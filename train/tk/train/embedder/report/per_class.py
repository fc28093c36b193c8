"""Picture: precision, recall and F1 of each class."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tk.runtime.metrics.intervals import wilson
from tk.train.embedder.report.measured import ClassScore, worst_first
from tk.train.embedder.report.style import HELD, INK, SOFT, TRAIN, LeftOut, new_figure, short

_BARS = (("precision", TRAIN), ("recall", HELD), ("f1", "#98a2ae"))


def draw_per_class(scores: list[ClassScore]) -> tuple[Figure, str]:
    """Bars of precision, recall and F1, the worst class on top.

    Returns:
        The figure and its caption.

    Raises:
        LeftOut: there are no crops.
    """
    if not any(one.support for one in scores):
        raise LeftOut("there are no held-out crops")
    ordered = worst_first(scores)
    figure = new_figure(9.5, 1.1 + (0.38 if len(ordered) <= 30 else 0.3) * len(ordered))
    axes = figure.subplots()
    rows = np.arange(len(ordered))
    for offset, (name, color) in zip((-0.27, 0.0, 0.27), _BARS, strict=True):
        values = np.nan_to_num([getattr(one, name) for one in ordered])
        label = "F1" if name == "f1" else name
        axes.barh(rows + offset, values, height=0.25, color=color, label=label)
    bounds = np.asarray([wilson(one.right, one.support) for one in ordered])
    seen = np.asarray([one.support > 0 for one in ordered])
    axes.hlines(rows[seen], bounds[seen, 0], bounds[seen, 1], color=INK, linewidth=1)
    names = [f"{short(one.name)}  ({one.support})" for one in ordered]
    axes.set_yticks(rows, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(ordered) - 0.45, -0.55)
    axes.set_xlim(0, 1.0)
    axes.grid(True, axis="x")
    axes.spines["left"].set_visible(False)
    for row, one in enumerate(ordered):
        text = f"{one.f1:.2f}" if one.support else "no crops"
        axes.text(1.01, row, text, va="center", color=SOFT, clip_on=False)
    figure.legend(loc="outside upper right", ncols=3)
    return figure, (
        "The worst F1 on top (its value at the right); in brackets the number of crops. "
        "The thin line is the 95 % Wilson interval of the recall."
    )
