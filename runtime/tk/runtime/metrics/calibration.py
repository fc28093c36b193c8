"""Is a classifier as sure as it is right? Reliability bins and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Answers by the probability that was given to them, in K equal bins of (0, 1].

    Attributes:
        edges: (K + 1,) float64 bounds of the bins; a bin has its upper bound, not its lower one.
        counts: (K,) int64 answers in a bin.
        confidence: (K,) float64 their mean probability; NaN for an empty bin.
        accuracy: (K,) float64 share of them that is right; NaN for an empty bin.
    """

    edges: Floats
    counts: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def reliability(
    true: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating], bins: int = 15
) -> Reliability:
    """Sort the answers, each the likeliest class, by their probability.

    Args:
        true: (N,) int64 class indices.
        probabilities: (N, C) float, rows sum to 1.
        bins: number K of bins.
    """
    if len(true) != len(probabilities):
        raise ValueError(f"{len(true)} true classes and {len(probabilities)} rows")
    edges = np.linspace(0, 1, bins + 1, dtype=np.float64)
    sure = probabilities.max(axis=1).astype(np.float64) if len(true) else np.zeros(0)
    right = (probabilities.argmax(axis=1) == true).astype(np.float64) if len(true) else sure
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, minlength=bins) / counts
        accuracy = np.bincount(place, right, minlength=bins) / counts
    return Reliability(edges, counts, confidence, accuracy)


def expected_calibration_error(
    true: npt.NDArray[np.int64], probabilities: npt.NDArray[np.floating], bins: int = 15
) -> float:
    """Mean distance of confidence and accuracy over the bins, each weighted by its answers.

    Guo et al. 2017, arXiv:1706.04599, equation 3.

    Args:
        true: (N,) int64 class indices.
        probabilities: (N, C) float, rows sum to 1.
        bins: number of bins.

    Returns:
        From 0 to 1; NaN when N is 0.
    """
    found = reliability(true, probabilities, bins)
    if not found.counts.sum():
        return float("nan")
    gaps = np.abs(found.confidence - found.accuracy)
    return float(np.nansum(gaps * found.counts) / found.counts.sum())
