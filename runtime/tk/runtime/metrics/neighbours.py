"""What rounding does to nearest neighbours: what they lose, not only how many change.

A cosine between an embedding and its rounded self says little where all embeddings lie close
together: there 0.9999 can change every third neighbour. A share of unchanged neighbours says too
much: of two equally good ones either may come first. So neighbours that changed are weighed by what
they cost, on the scale of the embeddings themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 1e-6
"""Cosines nearer than this are one: two float32 engines do not agree on more."""


@dataclass(frozen=True)
class Neighbours:
    """How well the nearest neighbours of a set survive.

    Attributes:
        kept: 1 - (similarity that the new neighbours lose) / (similarity by which the old ones
            stand out over an average other one), both in the reference's cosines and summed over
            the set. 1: as good as before. 0: as good as neighbours drawn by lot. Below 0: worse.
        same: share of the set whose neighbour is the same, or as near (`TIE`).
    """

    kept: float
    same: float


def neighbours_kept(reference: NDArray[Any], found: NDArray[Any]) -> Neighbours:
    """Compare the nearest other row of every row, by two embeddings of one set.

    Args:
        reference: (N, D), N >= 3; any length other than 0.
        found: (N, D), the same things in the same order.

    Returns:
        Both NaN where a number is not finite. Where no row stands out (all equally near) there is
        nothing to lose: 1.

    Raises:
        ValueError: fewer than 3 rows, or shapes differ.
    """
    if reference.shape != found.shape or len(reference) < 3:
        raise ValueError(f"two embeddings of 3 or more: {reference.shape}, {found.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        return Neighbours(float("nan"), float("nan"))
    rows = np.arange(len(reference))
    cosines, other = _cosines(reference), _cosines(found)
    average = (cosines.sum(axis=1) - cosines[rows, rows]) / (len(rows) - 1)
    for table in (cosines, other):
        table[rows, rows] = -np.inf
    best = cosines.max(axis=1)
    lost = best - cosines[rows, other.argmax(axis=1)]
    lost[lost <= TIE] = 0.0
    stands_out = float(np.maximum(best - average, 0.0).sum())
    if stands_out <= TIE * len(rows):
        return Neighbours(1.0, 1.0)
    return Neighbours(float(1 - lost.sum() / stands_out), float((lost == 0.0).mean()))


def _cosines(rows: NDArray[Any]) -> NDArray[np.float64]:
    wide = np.asarray(rows, np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return np.asarray(unit @ unit.T, np.float64)
