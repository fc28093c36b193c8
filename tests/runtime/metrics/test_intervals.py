from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest

from tk.runtime.metrics.intervals import (
    bootstrap_mean,
    student_interval,
    student_quantile,
    wilson,
)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("successes", "total"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (500, 1000)]
)
def test_wilson__equals_scipy(successes: int, total: int, confidence: float) -> None:
    theirs = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    low, high = wilson(successes, total, confidence)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= successes / total <= high <= 1


def test_wilson__no_trials_and_wrong_counts() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for successes, total in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, total)


def test_bootstrap_mean__near_the_normal_interval_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_mean(values)
    half = NormalDist().inv_cdf(0.975) * values.std() / 400**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_mean(values) == (low, high) != bootstrap_mean(values, seed=1)
    narrow = bootstrap_mean(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_mean(np.array([0.5])) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean(np.zeros(0))


@pytest.mark.parametrize("count", [2, 3, 5, 6, 20])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_student__as_scipy(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(0.9, 0.02, count)
    expected = stats.t.interval(confidence, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert student_interval(values, confidence) == pytest.approx(expected, rel=1e-10)


def test_student__needs_two_values() -> None:
    with pytest.raises(ValueError, match="the interval of 1 values"):
        student_interval(np.ones(1))
    assert student_interval(np.full(5, 0.5)) == (0.5, 0.5)
    with pytest.raises(ValueError, match="degrees of freedom"):
        student_quantile(0.3, 4)
