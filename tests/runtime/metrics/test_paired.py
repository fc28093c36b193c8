"""Paired comparisons against scipy, and against what is known of groups and runs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tk.runtime.metrics.paired import mcnemar_exact, paired_bootstrap

Right = NDArray[np.bool_]


def answers(seed: int, count: int, better: float) -> tuple[Right, Right]:
    rng = np.random.default_rng(seed)
    return rng.random(count) < 0.7 + better, rng.random(count) < 0.7


@pytest.mark.parametrize(("seed", "count"), [(0, 20), (1, 200), (2, 3000)])
def test_mcnemar__is_the_binomial_test_of_the_discordant_pairs(seed: int, count: int) -> None:
    a, b = answers(seed, count, 0.05)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(b, a) == mcnemar_exact(a, b)


def test_mcnemar__same_answers_and_other_lengths() -> None:
    a, b = answers(0, 50, 0)
    assert mcnemar_exact(a, a) == 1
    with pytest.raises(ValueError, match="answers"):
        mcnemar_exact(a, b[:40])


def test_bootstrap__one_run_as_scipy_and_as_the_normal_approximation() -> None:
    a, b = answers(3, 800, 0.06)
    difference, low, high = paired_bootstrap(a[None], b[None], [str(i) for i in range(800)])
    steps = a.astype(float) - b.astype(float)
    assert difference == pytest.approx(steps.mean())
    other = stats.bootstrap(
        (steps,), np.mean, n_resamples=5000, method="percentile", random_state=0
    ).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.004)
    half = 1.96 * steps.std() / 800**0.5
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.004)


def test_bootstrap__patches_of_one_image_count_as_one() -> None:
    """Ten copies of every patch are no more evidence than one."""
    a, b = answers(4, 100, 0.1)
    names = [str(i) for i in range(100)]
    once = paired_bootstrap(a[None], b[None], names)
    names_of_copies = [name for name in names for _ in range(10)]
    copies = paired_bootstrap(np.repeat(a, 10)[None], np.repeat(b, 10)[None], names_of_copies)
    assert copies == pytest.approx(once)
    alone = paired_bootstrap(
        np.repeat(a, 10)[None], np.repeat(b, 10)[None], [str(i) for i in range(1000)]
    )
    assert alone[2] - alone[1] < 0.5 * (once[2] - once[1])


def test_bootstrap__runs_that_differ_widen_the_interval() -> None:
    count = 400
    b = np.zeros((4, count), np.bool_)
    alike, apart = b.copy(), b.copy()
    alike[:, : count // 2] = True  # every run is better by a half
    apart[:2] = True  # two runs are better by all, two by nothing
    names = [str(i) for i in range(count)]
    first, second = paired_bootstrap(alike, b, names), paired_bootstrap(apart, b, names)
    assert first[0] == second[0] == 0.5
    assert second[2] - second[1] > 5 * (first[2] - first[1])


def test_bootstrap__no_difference_and_bad_shapes() -> None:
    a, b = answers(5, 30, 0)
    names = [str(i) for i in range(30)]
    assert paired_bootstrap(a[None], a[None], names) == (0, 0, 0)
    with pytest.raises(ValueError, match="in 30 groups"):
        paired_bootstrap(a, b, names)


def test_bootstrap__all_runs_count_where_one_has_fewer() -> None:
    """Five teachers of 0.80 to 0.95 and two students of 0.85: not "better" by the first two."""
    names = [str(i) for i in range(200)]
    teachers = np.stack([np.arange(200) < 200 * share for share in (0.8, 0.8, 0.9, 0.95, 0.95)])
    students = np.stack([np.arange(200) < 170] * 2)
    difference, low, high = paired_bootstrap(students, teachers, names)
    assert difference == pytest.approx(-0.03) and low < -0.03 < high
    back = paired_bootstrap(teachers, students, names)
    assert back[0] == pytest.approx(0.03)
    # the runs of both are drawn, so their spread is in the interval: the standard error of 5 runs
    runs = float(np.std([0.8, 0.8, 0.9, 0.95, 0.95])) / 5**0.5
    assert high - low > 2 * 1.96 * runs * 0.9


def test_bootstrap__one_run_against_many() -> None:
    names = [str(i) for i in range(50)]
    one = np.arange(50)[None] < 40
    many = np.stack([np.arange(50) < 40, np.arange(50) < 30])
    assert paired_bootstrap(one, many, names)[0] == pytest.approx(0.1)
