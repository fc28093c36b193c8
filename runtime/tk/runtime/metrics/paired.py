"""Is one classifier better than another on the same questions?"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import numpy.typing as npt

Right = npt.NDArray[np.bool_]
_AT_ONCE = 250
"""Resamples that are in memory together; another number draws others."""


def mcnemar_exact(a: Right, b: Right) -> float:
    """Exact two-sided McNemar test: could the questions that only one answers fall so by chance?

    McNemar 1947, with the binomial distribution instead of its approximation.

    Args:
        a, b: (N,) bool, which questions each answers rightly.

    Returns:
        p, in (0, 1]; 1 when they are right and wrong on the same questions.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} answers")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    total, few = only_a + only_b, min(only_a, only_b)
    # Whole numbers, since 0.5 ** n underflows where n is large.
    tail = sum(comb(total, k) for k in range(few + 1))
    return min(1.0, float(2 * tail / 2**total))


def paired_bootstrap(
    a: Right,
    b: Right,
    groups: Sequence[str],
    confidence: float = 0.95,
    rounds: int = 5000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference of two accuracies and its percentile interval, both measured on the same items.

    Each round draws source images with replacement, with all of their items, since items of one
    image are alike, and runs: where both have equally many, run k of `a` together with run k of
    `b`, which began alike; else those of `a` and those of `b` each for themselves.

    Args:
        a, b: (S, N) and (T, N) bool, which of N items each of S and T runs answers rightly.
        groups: N names of source images.
        confidence: in (0, 1).
        rounds: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        Difference of the means over all runs, a - b, lower and upper bound, from -1 to 1.
    """
    if a.ndim != 2 or b.ndim != 2 or not {a.shape[1], b.shape[1]} == {len(groups)} or not a.size:
        raise ValueError(f"{a.shape} and {b.shape} answers in {len(groups)} groups")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(place.ravel()).astype(np.float64)
    ours, theirs = (_sums(runs, place.ravel(), len(sizes)) for runs in (a, b))
    rng = np.random.default_rng(seed)
    found = []
    for begin in range(0, rounds, _AT_ONCE):
        count = min(_AT_ONCE, rounds - begin)
        images = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), count)
        first = _draws(rng, len(ours), count)
        second = first if len(ours) == len(theirs) else _draws(rng, len(theirs), count)
        right = (first @ ours - second @ theirs) * images
        found += [right.sum(axis=1) / (images @ sizes)]
    low, high = np.quantile(np.concatenate(found), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(a.mean() - b.mean()), float(low), float(high)


def _sums(runs: Right, place: npt.NDArray[np.int64], images: int) -> npt.NDArray[np.float64]:
    """(S, images) right answers of each run in each image."""
    return np.stack([np.bincount(place, run, minlength=images) for run in runs])


def _draws(rng: np.random.Generator, runs: int, count: int) -> npt.NDArray[np.float64]:
    """(count, runs) weights of runs that are drawn with replacement; each row sums to 1."""
    return rng.multinomial(runs, np.full(runs, 1 / runs), count) / runs
