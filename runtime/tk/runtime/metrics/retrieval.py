"""Figures of merit of embeddings as search keys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CHUNK = 1024
"""Rows of similarities held in memory at a time."""


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
    for start in range(0, len(labels), CHUNK):
        similarity = embeddings[start : start + CHUNK] @ embeddings.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        right[start : start + CHUNK] = labels[similarity.argmax(axis=1)] == labels[start + rows]
    return float(right[counted].mean())
