"""Picture: which class is taken for which."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tk.runtime.metrics.classification import confusion_matrix
from tk.train.embedder.report.measured import Measured
from tk.train.embedder.report.style import INK, SOFT, LeftOut, short

_BOTH = 16
"""Up to this many classes a cell shows count and share; above, the count."""


def draw_confusion(classes: tuple[str, ...], held: Measured) -> tuple[Figure, str]:
    """Counts, coloured by the share of their row (the true class).

    Returns:
        The figure and its caption.

    Raises:
        LeftOut: there are no crops.
    """
    if not len(held):
        raise LeftOut("there are no held-out crops")
    table = confusion_matrix(held.labels, held.predicted, len(classes))
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cell = float(np.interp(len(classes), [4, 12, 30, 60], [0.85, 0.6, 0.36, 0.27]))
    side = cell * len(classes)
    names = [short(name, 24) for name in classes]
    figure = Figure(figsize=(side, side))  # of the matrix; what stands around it adds to it
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(_colors(share), aspect="equal", interpolation="nearest")
    _label_axes(axes, names, cell)
    _write_cells(axes, table, share, cell)
    _write_rows(axes, table, cell)
    wrong = len(held) - int(np.trace(table))
    return figure, (
        f"Rows are true classes, columns answers: {len(held)} crops, {wrong} wrong. Colour is the "
        "share of the row: blue right, red wrong (darker than linear, so that rare errors show). "
        "At the right: right answers of the row."
    )


def confusions(
    classes: tuple[str, ...], held: Measured, most: int = 10
) -> list[tuple[str, str, int, int]]:
    """The most frequent errors: true class, answer, how often, crops of the true class."""
    table = confusion_matrix(held.labels, held.predicted, len(classes))
    sizes = table.sum(axis=1)
    np.fill_diagonal(table, 0)
    order = np.argsort(-table, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, table.shape)
    return [
        (classes[i], classes[j], int(table[i, j]), int(sizes[i]))
        for i, j in zip(rows, columns, strict=True)
        if table[i, j]
    ]


def _colors(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, C, 4) RGBA of the shares."""
    rgba = np.asarray(colormaps["Reds"](np.sqrt(share) * 0.85), np.float64)
    own = np.arange(len(share))
    rgba[own, own] = colormaps["Blues"](0.08 + 0.72 * share[own, own])
    rgba[share == 0] = (0.975, 0.978, 0.983, 1)
    return rgba


def _label_axes(axes: Axes, names: list[str], cell: float) -> None:
    size = float(np.clip(cell * 20, 6.5, 9))
    ticks = np.arange(len(names))
    axes.set_xticks(ticks, names, rotation=50, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", linewidth=1 if cell > 0.4 else 0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")


def _write_cells(
    axes: Axes, table: NDArray[np.int64], share: NDArray[np.float64], cell: float
) -> None:
    both = len(table) <= _BOTH
    size = float(np.clip(cell * 16, 5, 9))
    for i, j in zip(*np.nonzero(table), strict=True):
        dark = share[i, j] > (0.6 if i == j else 0.4)
        text = f"{table[i, j]}\n{share[i, j]:.0%}" if both else f"{table[i, j]}"
        color = "white" if dark else INK
        axes.text(
            j, i, text, ha="center", va="center", fontsize=size, color=color, linespacing=1.05
        )


def _write_rows(axes: Axes, table: NDArray[np.int64], cell: float) -> None:
    size = float(np.clip(cell * 18, 6.5, 8.5))
    for row, counts in enumerate(table):
        total = int(counts.sum())
        text = f"{counts[row]}/{total}  {counts[row] / total:.0%}" if total else "no crops"
        axes.text(len(table) - 0.35, row, text, ha="left", va="center", fontsize=size, color=SOFT)
