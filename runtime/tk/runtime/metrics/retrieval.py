"""Figures of merit of embeddings as search keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CHUNK = 1024
"""Rows of similarities held in memory at a time, at most."""
CELLS = 1 << 24
"""Similarities held in memory at a time, at most (64 MiB), as long as one row fits."""


def recall_at_1(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Share of embeddings whose nearest other one is of the same class (leave one out).

    An embedding that is alone in its class cannot be right: it is in the search but does not count.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64 class indices.

    Returns:
        From 0 to 1; NaN when no class has two members.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    counted = sizes[inverse] > 1
    if not counted.any():
        return float("nan")
    right = np.zeros(len(labels), np.bool_)
    for rows, similarity in _others(embeddings, np.arange(len(labels))):
        right[rows] = labels[similarity.argmax(axis=1)] == labels[rows]
    return float(right[counted].mean())


def map_at_r(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Mean average precision at R (Musgrave et al., 2020), leave one out.

    R is the number of other members of the query's class. Of the R nearest others, the precision at
    each right one is summed and divided by R, so 1 means that a class comes before all else.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64 class indices.

    Returns:
        From 0 to 1; NaN when no class has two members. Members alone in their class do not count.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = sizes[inverse] - 1
    # In order of R, so that a chunk sorts no more neighbours than its own queries need.
    queries = np.argsort(wanted, kind="stable")
    queries = queries[wanted[queries] > 0]
    if not len(queries):
        return float("nan")
    total = 0.0
    for rows, similarity in _others(embeddings, queries):
        depth = int(wanted[rows].max())
        hits = labels[_best(similarity, depth)] == labels[rows][:, None]
        ranks = np.arange(1, depth + 1)
        hits &= ranks <= wanted[rows][:, None]
        precision = np.cumsum(hits, axis=1) / ranks
        total += float(((precision * hits).sum(axis=1) / wanted[rows]).sum())
    return total / len(queries)


def nearest(
    queries: npt.NDArray[np.float32], keys: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Nearest keys of every query, most similar first, exact.

    Args:
        queries: (Q, D) float32, unit length.
        keys: (N, D) float32, unit length.
        count: how many; fewer when there are fewer keys.

    Returns:
        (Q, k) int64 indices of keys and (Q, k) float32 cosines, k = min(count, N).
    """
    depth = min(count, len(keys))
    indices = np.zeros((len(queries), depth), np.int64)
    cosines = np.zeros((len(queries), depth), np.float32)
    step = _step(len(keys))
    for start in range(0, len(queries) if depth else 0, step):
        similarity = queries[start : start + step] @ keys.T
        best = _best(similarity, depth)
        indices[start : start + step] = best
        cosines[start : start + step] = np.take_along_axis(similarity, best, axis=1)
    return indices, cosines


def _step(keys: int) -> int:
    return max(1, min(CHUNK, CELLS // max(keys, 1)))


def _others(
    embeddings: npt.NDArray[np.float32], queries: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Query rows chunk by chunk, with their similarity to all; to themselves it is -infinity."""
    step = _step(len(embeddings))
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        similarity = embeddings[rows] @ embeddings.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        yield rows, similarity


def _best(similarity: npt.NDArray[np.float32], depth: int) -> npt.NDArray[np.int64]:
    """Columns of the `depth` highest values of each row, highest first, of equals the first ones.

    Args:
        similarity: (Q, N) float32.
        depth: 1 to N.

    Returns:
        (Q, depth) int64.
    """
    # Twice as fast as argpartition: values alone are partitioned by vector instructions.
    edge = np.partition(similarity, -depth, axis=1)[:, -depth, None]
    chosen = ~(similarity < edge)
    for row in np.flatnonzero(chosen.sum(axis=1) > depth):  # equals on the edge, or NaN
        chosen[row] = False
        chosen[row, np.argsort(-similarity[row], kind="stable")[:depth]] = True
    columns = np.nonzero(chosen)[1].reshape(len(similarity), depth)
    order = np.argsort(-np.take_along_axis(similarity, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
