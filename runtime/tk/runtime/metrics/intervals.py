"""Confidence intervals."""

from __future__ import annotations

from math import atan, cos, pi, sin
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


def student_interval(
    values: npt.NDArray[np.floating], confidence: float = 0.95
) -> tuple[float, float]:
    """Student's t interval of a mean, for a few values that are about normal (runs with seeds).

    Args:
        values: (N,) float, N at least 2.
        confidence: in (0, 1).

    Returns:
        Lower and upper bound.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"the interval of {count} values")
    error = float(np.std(values, ddof=1)) / count**0.5
    half = student_quantile((1 + confidence) / 2, count - 1) * error
    mean = float(np.mean(values))
    return mean - half, mean + half


def student_quantile(share: float, freedom: int) -> float:
    """The value that Student's t stays below with probability `share`.

    Args:
        share: in [0.5, 1).
        freedom: degrees of freedom, at least 1.
    """
    if not 0.5 <= share < 1 or freedom < 1:
        raise ValueError(f"share {share}, {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < share else (low, middle)
    return high


def _student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = atan(t / freedom**0.5)
    odd = freedom % 2
    square = cos(angle) ** 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * square
        total += term
    middle = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return 0.5 + middle / 2
