"""Picture: queries and their nearest references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from tk.runtime.preprocess import Image
from tk.train.embedder.report.measured import Measured, thumbnail
from tk.train.embedder.report.style import BAD, GOOD, INK, SOFT, LeftOut, short

_CHUNK = 1024
_ROWS, _COLUMNS = 12, 5
_THUMB = 112
_STEP_X, _STEP_Y = 1.16, 1.42
"""Distance of the pictures of the sheet, where a picture is 1 wide."""


@dataclass(frozen=True)
class Nearest:
    """The nearest references of each query, the nearest first.

    Attributes:
        index: (N, k) int64 places in the references.
        similarity: (N, k) float32 cosine, -inf where there is no further reference.
        right: (N,) bool, the nearest reference is of the query's class.
    """

    index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    right: NDArray[np.bool_]


def find_nearest(queries: Measured, references: Measured, count: int = _COLUMNS) -> Nearest:
    """Search the nearest references; the query's own file is not among them."""
    count = min(count, len(references))
    index = np.zeros((len(queries), count), np.int64)
    similarity = np.full((len(queries), count), -np.inf, np.float32)
    if count:
        for start in range(0, len(queries), _CHUNK):
            rows = slice(start, start + _CHUNK)
            index[rows], similarity[rows] = _search(queries, references, rows, count)
    right = np.zeros(len(queries), np.bool_)
    if count:
        same = references.labels[index[:, 0]] == queries.labels
        right = same & np.isfinite(similarity[:, 0])
    return Nearest(index, similarity, right)


def _search(
    queries: Measured, references: Measured, rows: slice, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    near = queries.embeddings[rows] @ references.embeddings.T
    place = {file: i for i, file in enumerate(references.files)}
    for row, file in enumerate(queries.files[rows]):
        if file in place:
            near[row, place[file]] = -np.inf
    best = np.argpartition(-near, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(near, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return best.astype(np.int64), np.take_along_axis(near, best, axis=1).astype(np.float32)


def choose_queries(
    labels: NDArray[np.int64], right: NDArray[np.bool_], limit: int = _ROWS, seed: int = 0
) -> list[int]:
    """A seeded choice, balanced over classes, the wrong ones first.

    Args:
        labels: (N,) int64 class indices.
        right: (N,) bool.
        limit: at most so many.
        seed: the same seed gives the same choice.

    Returns:
        Indices 0..N-1.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    taken = dict.fromkeys(np.unique(labels).tolist(), 0)
    chosen: list[int] = []
    for wanted in (False, True):
        waiting: dict[int, list[int]] = {}
        for i in order[right[order] == wanted].tolist():
            waiting.setdefault(int(labels[i]), []).append(i)
        while waiting and len(chosen) < limit:
            # The class seen least so far; among equals the one that comes first by chance.
            label = min(waiting, key=taken.__getitem__)
            chosen.append(waiting[label].pop(0))
            taken[label] += 1
            if not waiting[label]:
                del waiting[label]
    return chosen


def draw_neighbours(
    classes: tuple[str, ...], held: Measured, references: Measured, nearest: Nearest
) -> tuple[Figure, str]:
    """Rows of a query and its five nearest references, framed by whether the class is the same.

    Returns:
        The figure and its caption.

    Raises:
        LeftOut: no queries or no references.
    """
    if not len(held) or not len(references):
        raise LeftOut(f"there are no {'held-out' if not len(held) else 'reference'} crops")
    chosen = choose_queries(held.labels, nearest.right)
    blocks = 2 if len(chosen) > 6 else 1
    rows = -(-len(chosen) // blocks)
    wide = 1.25 + _STEP_X * nearest.index.shape[1]
    width, height = blocks * (wide + 0.35) - 0.1, rows * _STEP_Y + 0.1
    figure = Figure(figsize=(width, height))  # every place on the sheet is known
    axes = figure.add_axes((0, 0, 1, 1))
    for place, query in enumerate(chosen):
        x, y = (place // rows) * (wide + 0.35), (place % rows) * _STEP_Y
        _draw_row(axes, x, y, query, classes, held, references, nearest)
    axes.set_xlim(-0.2, width - 0.2)
    axes.set_ylim(height - 0.08, -0.08)
    axes.set_axis_off()
    return figure, _caption(chosen, nearest)


def _caption(chosen: list[int], nearest: Nearest) -> str:
    wrong, shown = int((~nearest.right).sum()), int((~nearest.right[chosen]).sum())
    return (
        f"Left the query (grey frame), then its {nearest.index.shape[1]} nearest references with "
        "their cosine similarity: green ✓ same class, red ✗ another class. Chosen by chance "
        "(seed 0), balanced over classes, wrong ones first: "
        f"{shown} of the {wrong} queries whose nearest reference is of another class, and "
        f"{len(chosen) - shown} of the {len(nearest.right) - wrong} others."
    )


def _draw_row(
    axes: Axes,
    x: float,
    y: float,
    query: int,
    classes: tuple[str, ...],
    held: Measured,
    references: Measured,
    nearest: Nearest,
) -> None:
    label = held.labels[query]
    _tile(axes, x, y, thumbnail(held, query, _THUMB), SOFT, classes[label], "query")
    found = zip(nearest.index[query], nearest.similarity[query], strict=True)
    for column, (index, similarity) in enumerate(found):
        if not np.isfinite(similarity):
            continue
        other = references.labels[index]
        color, sign = (GOOD, "✓") if other == label else (BAD, "✗")
        left = x + 1.25 + column * _STEP_X
        picture = thumbnail(references, int(index), _THUMB)
        _tile(axes, left, y, picture, color, classes[other], f"{sign} {similarity:.3f}")


def _tile(axes: Axes, x: float, y: float, picture: Image, color: str, name: str, note: str) -> None:
    """A picture of size 1 with a frame, and below it two lines."""
    axes.imshow(
        picture, extent=(x, x + 1, y + 1, y), interpolation="bilinear", aspect="auto", zorder=1
    )
    frame = Rectangle((x, y), 1, 1, fill=False, edgecolor=color, linewidth=3, zorder=2)
    axes.add_patch(frame)
    axes.text(x + 0.5, y + 1.05, note, ha="center", va="top", fontsize=8, color=color)
    axes.text(x + 0.5, y + 1.2, short(name, 15), ha="center", va="top", fontsize=7.5, color=INK)
