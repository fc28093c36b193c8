"""Where to clip: from the histogram of a tensor's absolute values to the end of its int8 range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 2048
LEVELS = 128
"""Steps of the positive half of int8."""

ENTROPY_STRIDE = 8
"""Bins between two candidates of the entropy method."""

CANDIDATES = np.linspace(0.2, 1.0, 161)
"""Shares of the largest value that the squared-error method tries."""


@dataclass(frozen=True)
class Histogram:
    """Distribution of the absolute values of one tensor.

    Attributes:
        counts: (BINS,) int64, over equal bins from 0 to `top`.
        top: the largest absolute value; 0 for a tensor that is always zero.
    """

    counts: NDArray[np.int64]
    top: float


def clip_point(histogram: Histogram, method: str, percentile: float) -> float:
    """Absolute value at which int8 saturates.

    Args:
        histogram: of absolute values.
        method: `percentile`, `entropy` or `mse`.
        percentile: share of values inside, in percent; of the method of that name.
    """
    if histogram.top == 0 or histogram.counts.sum() == 0:
        return histogram.top
    if method == "percentile":
        return _percentile(histogram, percentile)
    return _entropy(histogram) if method == "entropy" else _squared_error(histogram)


def _percentile(histogram: Histogram, percentile: float) -> float:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    inside = int(np.searchsorted(share, percentile / 100 - 1e-12))
    return histogram.top * min(inside + 1, BINS) / BINS


def _entropy(histogram: Histogram) -> float:
    """Clip where the int8 distribution tells least from the true one (Kullback-Leibler)."""
    counts = histogram.counts.copy()
    counts[0] = counts[1]  # zeros of a Relu are exact at any scale, and would outweigh the rest
    best, bins = np.inf, BINS
    for end in range(LEVELS, BINS + 1, ENTROPY_STRIDE):
        divergence = _divergence(counts, end)
        if divergence < best:
            best, bins = divergence, end
    return histogram.top * bins / BINS


def _divergence(counts: NDArray[np.int64], end: int) -> float:
    """Divergence of `counts` clipped at bin `end` from its image in `LEVELS` equal steps."""
    inside = counts[:end].astype(np.float64)
    group = np.arange(end) * LEVELS // end
    filled = inside > 0
    sums = np.bincount(group, inside, LEVELS)
    members = np.bincount(group, filled, LEVELS)
    coarse = np.where(filled, (sums / np.maximum(members, 1))[group], 0.0)
    true = inside
    true[-1] += counts[end:].sum()  # what saturates; `coarse` must not know of it
    keep = true > 0
    p, q = true / true.sum(), coarse / max(coarse.sum(), 1.0)
    return float((p[keep] * np.log(p[keep] / np.maximum(q[keep], 1e-9))).sum())


def _squared_error(histogram: Histogram) -> float:
    """Clip where rounding and saturation together cost least."""
    centres = (np.arange(BINS) + 0.5) * histogram.top / BINS
    used = histogram.counts > 0
    values, weights = centres[used], histogram.counts[used]
    best, clip = np.inf, histogram.top
    for candidate in CANDIDATES * histogram.top:
        step = candidate / (LEVELS - 1)
        error = values - step * np.minimum(np.rint(values / step), LEVELS - 1)
        cost = float((weights * error**2).sum())
        if cost < best:
            best, clip = cost, float(candidate)
    return clip
