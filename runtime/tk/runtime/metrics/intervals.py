"""Confidence intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; sound for few trials and near 0 and 1.

    Args:
        successes: 0 to `total`.
        total: number of trials.
        confidence: in (0, 1).

    Returns:
        Lower and upper bound; (0, 1) when there was no trial.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}")
    if not total:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = (weight * share * (1 - share) + weight * weight / 4) ** 0.5 / (1 + weight)
    # At the ends the bound is exactly 0 or 1; rounding would leave it a hair off.
    low = centre - half if successes else 0.0
    return low, centre + half if successes < total else 1.0


def bootstrap_mean(
    values: npt.NDArray[np.floating], confidence: float = 0.95, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, for figures that are not proportions.

    Args:
        values: (N,) float, one per independent unit (image, seed), N at least 1.
        confidence: in (0, 1).
        rounds: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        Lower and upper bound.
    """
    if not len(values):
        raise ValueError("the interval of no values")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(rounds)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
