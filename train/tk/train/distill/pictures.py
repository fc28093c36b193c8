"""Pictures of a run: features on a plane, confusion matrices, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from tk.runtime.draw import class_colors
from tk.runtime.metrics.calibration import Reliability
from tk.train.embedder.report.style import HELD, INK, LINE, SOFT, new_figure, png, short, style

POINTS = 2000
"""Features drawn at most; more hide one another."""
COLUMNS = 4


def draw_pca(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    held: NDArray[np.bool_],
    classes: Sequence[str],
    title: str,
) -> bytes:
    """The two main directions of the features, coloured by class: a PNG.

    Args:
        features: (N, F) float32.
        labels: (N,) int64.
        held: (N,) bool, of the test; drawn as crosses.
    """
    keep = np.random.default_rng(0).permutation(len(features))[:POINTS]
    pca = PCA(2, svd_solver="full" if len(keep) < 500 else "covariance_eigh")
    plane = pca.fit_transform(features[keep].astype(np.float64))
    shares = pca.explained_variance_ratio_
    colors = class_colors(list(classes))
    with style():
        figure = new_figure(6.4, 5)
        axes = figure.add_subplot()
        for label, name in enumerate(classes):
            color = tuple(part / 255 for part in colors[name])
            for test, marker, size in ((False, "o", 12), (True, "x", 22)):
                own = (labels[keep] == label) & (held[keep] == test)
                axes.scatter(
                    plane[own, 0],
                    plane[own, 1],
                    s=size,
                    marker=marker,
                    color=color,
                    alpha=0.7,
                    linewidths=1 if test else 0,
                    label=None if test else short(name, 24),
                )
        axes.set_title(f"{title}; crosses are test patches")
        axes.set_xlabel(f"first component, {shares[0]:.0%} of the variance")
        axes.set_ylabel(f"second, {shares[1]:.0%}")
        figure.legend(loc="outside right upper", markerscale=1.6)
        return png(figure)


def draw_confusions(tables: dict[str, NDArray[np.int64]], classes: Sequence[str]) -> bytes:
    """All confusion matrices in one picture: a PNG.

    Args:
        tables: title -> (C, C) int64, row = true class, column = answer.
    """
    columns = min(COLUMNS, len(tables))
    rows = ceil(len(tables) / columns)
    side = float(np.interp(len(classes), [4, 10, 30], [2.3, 3.8, 8]))
    names = [short(name, 14) for name in classes]
    with style():
        figure = new_figure((side + 0.6) * columns, (side + 0.9) * rows)
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes, (title, table) in zip(grid, tables.items(), strict=False):
            _confusion(axes, title, table, names)
        for axes in grid[len(tables) :]:
            axes.set_axis_off()
        return png(figure)


def _confusion(axes: Axes, title: str, table: NDArray[np.int64], names: Sequence[str]) -> None:
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    right = np.trace(table) / max(table.sum(), 1)
    axes.set_title(f"{title}\naccuracy {right:.2%}", fontsize=8.5)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, j in zip(*np.nonzero(table), strict=True):
        color = "white" if share[i, j] > 0.5 else INK
        axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=7.5, color=color)


def draw_reliability(found: dict[str, tuple[Reliability, float]]) -> bytes:
    """Confidence against accuracy, a panel for every model: a PNG.

    Args:
        found: title -> bins and expected calibration error.
    """
    columns = min(COLUMNS, len(found))
    rows = ceil(len(found) / columns)
    with style():
        figure = new_figure(2.7 * columns, 2.9 * rows)
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes, (title, (bins, error)) in zip(grid, found.items(), strict=False):
            _reliability(axes, title, bins, error)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        return png(figure)


def _reliability(axes: Axes, title: str, bins: Reliability, error: float) -> None:
    used = bins.counts > 0
    share = bins.counts[used] / max(1, bins.counts.sum())
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle="--")
    axes.bar(
        bins.edges[:-1], bins.counts / max(1, bins.counts.sum()), np.diff(bins.edges),
        align="edge", color=LINE,
    )  # fmt: skip
    axes.scatter(
        bins.confidence[used], bins.accuracy[used], s=12 + 120 * share, color=HELD, zorder=3
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{title}\nECE {error:.4f}", fontsize=8.5)
    axes.set_xlabel("confidence (bars: share of answers)", fontsize=7.5)
    axes.set_ylabel("accuracy", fontsize=7.5)
