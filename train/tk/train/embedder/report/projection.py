"""Picture: the embeddings on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from tk.runtime.draw import class_colors
from tk.train.embedder.report.measured import Measured
from tk.train.embedder.report.style import INK, SOFT, LeftOut, new_figure, short

MOST = 1500
"""Points of the picture: t-SNE of so many takes some seconds on one core."""
_INNER = 40
"""Components that t-SNE is given: the rest of an embedding is noise to it, and time."""


@dataclass(frozen=True)
class _Cloud:
    """Points of both splits, chosen for the picture.

    Attributes:
        vectors: (n, D) float64.
        labels: (n,) int64.
        held: (n,) bool, of the held-out split.
        wrong: (n,) bool, held out and given another class.
    """

    vectors: NDArray[np.float64]
    labels: NDArray[np.int64]
    held: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def draw_projection(
    classes: tuple[str, ...], held: Measured, references: Measured
) -> tuple[Figure, str]:
    """PCA and t-SNE of the held-out crops and the references, coloured by class.

    Returns:
        The figure and its caption.

    Raises:
        LeftOut: fewer than 3 crops, or all embeddings are the same.
    """
    cloud = _gather(held, references)
    total = len(held) + len(references)
    if len(cloud.labels) < 3:
        raise LeftOut("a plane needs at least 3 crops")
    centred = cloud.vectors - cloud.vectors.mean(axis=0)
    if np.square(centred).sum(axis=1).mean() < 1e-10 or centred.shape[1] < 2:
        raise LeftOut("all embeddings are the same")
    inner = min(_INNER, *centred.shape)
    pca = PCA(inner, svd_solver="full").fit(centred)
    flat = pca.transform(centred)
    shares = pca.explained_variance_ratio_[:2]
    maps = [(f"PCA: {shares[0]:.0%} + {shares[1]:.0%} of the variance", flat[:, :2])]
    tsne, note = _tsne(flat)
    if tsne is not None:
        maps.append((note, tsne))
    figure = _draw(classes, cloud, maps)
    sampled = f"{len(cloud.labels)} of {total} crops, balanced over classes (seed 0)"
    chosen = f"All {total} crops" if len(cloud.labels) == total else sampled
    missing = "" if tsne is not None else f" t-SNE is left out: {note}."
    return figure, (
        f"{chosen}. Dots are references, crosses held-out crops; a red ring marks a held-out crop "
        f"given another class. The PCA plane holds {shares.sum():.1%} of the variance. In t-SNE "
        f"only neighbourhoods mean something, not distances between groups.{missing}"
    )


def _gather(held: Measured, references: Measured) -> _Cloud:
    parts = [part for part in (held, references) if len(part)]
    if not parts:
        raise LeftOut("there are no crops")
    vectors = np.concatenate([part.embeddings for part in parts]).astype(np.float64)
    labels = np.concatenate([part.labels for part in parts])
    is_held = np.arange(len(labels)) < len(held)
    wrong = np.zeros(len(labels), np.bool_)
    wrong[: len(held)] = held.predicted != held.labels
    keep = _balanced(labels, is_held, MOST)
    return _Cloud(vectors[keep], labels[keep], is_held[keep], wrong[keep])


def _balanced(
    labels: NDArray[np.int64], is_held: NDArray[np.bool_], most: int
) -> NDArray[np.int64]:
    """Sorted places of at most `most` points, as even over the classes and splits as they allow."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)
    seen: dict[tuple[int, bool], int] = {}
    for i in order:
        key = int(labels[i]), bool(is_held[i])
        rank[i] = seen[key] = seen.get(key, -1) + 1
    # The first of each group, then the second of each, and so on.
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def _tsne(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, str]:
    """(n, 2) coordinates and the title of the map, or None and why not."""
    if len(flat) < 6:
        return None, "it needs at least 6 crops"
    if len(np.unique(flat.round(6), axis=0)) < 6:
        return None, "fewer than 6 embeddings differ"
    perplexity = min(30.0, (len(flat) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0, n_jobs=1)
    found = tsne.fit_transform(flat.astype(np.float32))
    if not np.isfinite(found).all():
        return None, "it did not converge"
    return np.asarray(found, np.float64), f"t-SNE: perplexity {perplexity:.0f}, seed 0"


def _draw(
    classes: tuple[str, ...], cloud: _Cloud, maps: Sequence[tuple[str, NDArray[np.float64]]]
) -> Figure:
    used = np.unique(cloud.labels).tolist()
    palette = class_colors([classes[i] for i in used])
    colors = {i: tuple(c / 255 for c in palette[classes[i]]) for i in used}
    columns = -(-len(used) // 24)
    figure = new_figure(5.6 * len(maps) + 1.9 * columns, 5.8)
    grid = np.atleast_1d(figure.subplots(1, len(maps)))
    for axes, (title, points) in zip(grid, maps, strict=True):
        for label in used:
            _scatter(axes, points, cloud, label, colors[label])
        if len(used) > 10:
            _number(axes, points, cloud.labels, used)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(True)
    _legend(figure, classes, used, colors, cloud, columns)
    return figure


def _scatter(
    axes: Axes,
    points: NDArray[np.float64],
    cloud: _Cloud,
    label: int,
    color: tuple[float, ...],
) -> None:
    crowd = float(np.clip(400 / len(points), 0.35, 1.6))
    x, y = points[:, 0], points[:, 1]
    own = cloud.labels == label
    quiet, loud, ring = own & ~cloud.held, own & cloud.held, own & cloud.wrong
    axes.scatter(x[quiet], y[quiet], s=22 * crowd, color=color, alpha=0.55, linewidths=0, zorder=2)
    axes.scatter(
        x[loud], y[loud], s=56 * crowd, marker="X", color=color, edgecolors=INK,
        linewidths=0.5 * min(1, crowd), zorder=3,
    )  # fmt: skip
    axes.scatter(
        x[ring], y[ring], s=110, facecolors="none", edgecolors="#d00000", linewidths=1.3, zorder=4
    )


def _number(
    axes: Axes, points: NDArray[np.float64], labels: NDArray[np.int64], used: Sequence[int]
) -> None:
    """The number of each class on its point nearest to the middle: colours alone are too like."""
    for label in used:
        own = points[labels == label]
        x, y = own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()]
        halo = [withStroke(linewidth=2.4, foreground="white")]
        axes.text(
            x, y, str(label + 1), ha="center", va="center", fontsize=8.5, fontweight="bold",
            color=INK, path_effects=halo, zorder=6,
        )  # fmt: skip


def _legend(
    figure: Figure,
    classes: tuple[str, ...],
    used: Sequence[int],
    colors: dict[int, tuple[float, ...]],
    cloud: _Cloud,
    columns: int,
) -> None:
    def entry(label: str, **look: object) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **look)  # type: ignore[arg-type]

    handles = [entry("reference", marker="o", color=SOFT, markersize=5)]
    if cloud.held.any():
        handles.append(entry("held out", marker="X", color=SOFT, markersize=8))
    if cloud.wrong.any():
        look = {"markerfacecolor": "none", "markeredgecolor": "#d00000", "markersize": 10}
        handles.append(entry("held out, wrong", marker="o", **look))
    for i in used:
        name = short(classes[i], 22)
        text = f"{i + 1}  {name}" if len(used) > 10 else name
        handles.append(entry(text, marker="s", color=colors[i], markersize=7))
    figure.legend(handles=handles, loc="outside right upper", ncols=columns, handletextpad=0.2)
