"""Sub-prototypes: a few centres per class, for classes whose members look several ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STARTS = 8
"""Runs of k-means from different starts; the tightest one is kept."""
ROUNDS = 50
"""Rounds of one run, at most; it ends when no reference changes its centre."""
SAME = 1e-6
"""Least cosine distance of two references that count as different."""

Rows = NDArray[np.float32]


def sub_prototypes(
    embeddings: Rows, labels: NDArray[np.int64], classes: int, per_class: int, seed: int = 0
) -> tuple[Rows, NDArray[np.int64]]:
    """Find at most `per_class` centres of every class.

    Args:
        embeddings: (N, D) float32, unit length.
        labels: (N,) int64, 0 to classes - 1.
        classes: number of classes C.
        per_class: centres per class, at least 1; a class with fewer different references has fewer.
        seed: a class's centres depend on it and on the class's own references alone.

    Returns:
        (M, D) float32 centres of unit length, class by class, and (M,) int64, the class of each.
    """
    groups = [
        spherical_kmeans(embeddings[labels == index], per_class, np.random.default_rng(seed))
        for index in range(classes)
    ]
    owners = np.repeat(np.arange(classes), [len(group) for group in groups])
    empty = np.zeros((0, embeddings.shape[1]), np.float32)
    return np.concatenate([empty, *groups]), owners


def spherical_kmeans(rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """Cluster by cosine: centres that make the mean similarity of rows to their nearest high.

    Args:
        rows: (N, D) float32, unit length.
        count: number of centres, at least 1; fewer when fewer rows differ.
        random: chooses the starts.

    Returns:
        (K, D) float32, unit length.
    """
    best, tightest = rows[:0], -np.inf
    for _ in range(STARTS if len(rows) else 0):
        centers = _start(rows, count, random)
        nearest = np.full(len(rows), -1)
        for _ in range(ROUNDS):
            similarity = rows @ centers.T
            previous, nearest = nearest, similarity.argmax(axis=1)
            if np.array_equal(previous, nearest):
                break
            centers = _means(rows, nearest, centers)
        total = float((rows @ centers.T).max(axis=1).sum())
        if total > tightest:
            best, tightest = centers, total
    return best


def _start(rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """Rows far from each other (k-means++): each next one by its distance to those before it."""
    chosen = [int(random.integers(len(rows)))]
    while len(chosen) < count:
        distance = np.float64(1) - (rows @ rows[chosen].T).max(axis=1)
        distance = np.where(distance > SAME, distance, 0)
        if not distance.any():
            break
        chosen.append(int(random.choice(len(rows), p=distance / distance.sum())))
    return rows[chosen]


def _means(rows: Rows, nearest: NDArray[np.int64], centers: Rows) -> Rows:
    """Mean direction of the rows of each centre; one without rows stays where it was."""
    members = nearest == np.arange(len(centers))[:, None]
    sums = members.astype(np.float32) @ rows
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > SAME, sums / np.maximum(norms, SAME), centers).astype(np.float32)
