from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linear_sum_assignment

from tk.runtime.assign import assign_classes, best_pairs, margins
from tk.runtime.errors import TkError

Floats = npt.NDArray[np.float32]
MODES = ("unique", "greedy", "free")
SHAPES = [(1, 1), (2, 3), (4, 2), (4, 4), (1, 5), (5, 1)]


def case(seed: int, n: int, c: int) -> tuple[Floats, Floats]:
    """Similarities and thresholds on a coarse grid, so that ties and equality happen."""
    generator = np.random.default_rng(seed)
    similarity = generator.integers(-8, 9, (n, c)) / 8
    thresholds = generator.integers(-8, 9, c) / 8
    return similarity.astype(np.float32), thresholds.astype(np.float32)


def value(similarity: Floats, thresholds: Floats, assigned: list[int | None]) -> float:
    return sum(
        float(similarity[i, c]) - float(thresholds[c])
        for i, c in enumerate(assigned)
        if c is not None
    )


def check_legal(similarity: Floats, thresholds: Floats, assigned: list[int | None]) -> None:
    used = [c for c in assigned if c is not None]
    assert len(assigned) == len(similarity) and len(used) == len(set(used))
    for i, c in enumerate(assigned):
        assert c is None or (type(c) is int and similarity[i, c] >= thresholds[c])


def brute_force(similarity: Floats, thresholds: Floats) -> float:
    n, c = similarity.shape
    choices: list[int | None] = [*range(c), *([None] * n)]
    best = 0.0
    for picked in set(itertools.permutations(choices, n)):
        if all(k is None or similarity[i, k] >= thresholds[k] for i, k in enumerate(picked)):
            best = max(best, value(similarity, thresholds, list(picked)))
    return best


@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_unique__equals_brute_force(n: int, c: int) -> None:
    for seed in range(8):
        similarity, thresholds = case(seed, n, c)
        assigned = assign_classes(similarity, thresholds)
        check_legal(similarity, thresholds, assigned)
        best = brute_force(similarity, thresholds)
        assert value(similarity, thresholds, assigned) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("n", "c"), [(11, 11), (30, 11), (7, 40), (3, 500), (60, 60)])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6])
def test_unique__equals_scipy_with_a_private_unknown_column(
    n: int, c: int, threshold: float
) -> None:
    for seed in range(5):
        similarity = np.random.default_rng(seed).uniform(-1, 1, (n, c)).astype(np.float32)
        private = np.full((n, n), -1e9)
        np.fill_diagonal(private, threshold)
        allowed = np.where(similarity >= threshold, similarity.astype(np.float64), -1e9)
        joined = np.hstack([allowed, private])
        picked = joined[linear_sum_assignment(joined, maximize=True)]
        assigned = assign_classes(similarity, threshold)
        check_legal(similarity, np.full(c, threshold, np.float32), assigned)
        total = sum(
            threshold if k is None else float(similarity[i, k]) for i, k in enumerate(assigned)
        )
        assert total == pytest.approx(picked.sum(), abs=1e-5)


def test_unique__beats_greedy_where_greedy_is_wrong() -> None:
    similarity = np.array([[0.9, 0.88], [0.89, 0.1]], np.float32)
    assert assign_classes(similarity, 0.3, "greedy") == [0, None]
    assert assign_classes(similarity, 0.3, "unique") == [1, 0]
    assert assign_classes(similarity, 0.3, "free") == [0, 0]


def test_unique__a_class_easily_matched_must_be_matched_better() -> None:
    similarity = np.array([[0.8, 0.7]], np.float32)
    assert assign_classes(similarity, 0.5) == [0]
    assert assign_classes(similarity, np.array([0.75, 0.5], np.float32)) == [1]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode__threshold_is_reached_when_equal(mode: Any) -> None:
    similarity = np.array([[0.5], [0.4375]], np.float32)
    assert assign_classes(similarity, 0.5, mode) == [0, None]


@pytest.mark.parametrize(
    ("similarity", "threshold", "expected"),
    [
        ([[0.9, 0.1], [0.8, 0.7]], 0.0, [0, 1]),
        ([[0.9, 0.1], [0.8, 0.7]], 0.75, [0, None]),
        # Of the two that lost class 0, the better one (row 2) chooses first.
        ([[0.9, 0.1], [0.5, 0.4], [0.8, 0.3]], 0.0, [0, None, 1]),
        # Row 1 lost class 0, and class 1 belongs to row 2, which is best there.
        ([[0.9, 0.8, 0.1], [0.85, 0.8, 0.2], [0.1, 0.5, 0.0]], 0.0, [0, 2, 1]),
        # Row 2 is best in class 0 with just enough, so row 1 finds no class free.
        ([[0.1, 0.9], [0.5, 0.8], [0.5, 0.1]], 0.5, [1, None, 0]),
        ([[0.5, 0.4], [0.5, 0.4]], 0.0, [0, 1]),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0, [0, 1]),
    ],
)
def test_greedy__cases(
    similarity: list[list[float]], threshold: float, expected: list[int | None]
) -> None:
    assert assign_classes(np.array(similarity, np.float32), threshold, "greedy") == expected


@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_greedy__legal_and_never_better_than_unique(n: int, c: int) -> None:
    for seed in range(20):
        similarity, thresholds = case(seed, n, c)
        greedy = assign_classes(similarity, thresholds, "greedy")
        check_legal(similarity, thresholds, greedy)
        unique = assign_classes(similarity, thresholds, "unique")
        best = value(similarity, thresholds, unique)
        assert value(similarity, thresholds, greedy) <= best + 1e-6


def test_free__argmax_or_unknown() -> None:
    similarity = np.array([[0.2, 0.9], [0.1, 0.8], [0.3, 0.2], [0.6, 0.6]], np.float32)
    assert assign_classes(similarity, 0.5, "free") == [1, 1, None, 0]
    thresholds = np.array([0.1, 0.85], np.float32)
    assert assign_classes(similarity, thresholds, "free") == [1, None, 0, 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "c"), [(0, 0), (0, 3), (3, 0)])
def test_every_mode__nothing_to_assign(mode: Any, n: int, c: int) -> None:
    assert assign_classes(np.zeros((n, c), np.float32), 0.0, mode) == [None] * n


@pytest.mark.parametrize("mode", MODES)
def test_every_mode__ties_are_the_same_each_time(mode: Any) -> None:
    similarity = np.full((6, 4), 0.5, np.float32)
    first = assign_classes(similarity, 0.5, mode)
    assert sum(c is not None for c in first) == (6 if mode == "free" else 4)
    for _ in range(5):
        assert assign_classes(np.asfortranarray(similarity), 0.5, mode) == first


@pytest.mark.parametrize(
    ("similarity", "unknown", "mode"),
    [
        ([[0.1, float("nan")]], 0.0, "unique"),
        ([[0.1, float("inf")]], 0.0, "greedy"),
        ([0.1, 0.2], 0.0, "unique"),
        ([[0.1, 0.2]], float("nan"), "unique"),
        ([[0.1, 0.2]], float("-inf"), "free"),
        ([[0.1, 0.2]], [0.1, 0.2, 0.3], "unique"),
        ([[0.1, 0.2]], [[0.1, 0.2]], "unique"),
        ([[0.1, 0.2]], 0.0, "best"),
    ],
)
def test_assign_classes__refuses(similarity: Any, unknown: Any, mode: Any) -> None:
    if isinstance(unknown, list):
        unknown = np.array(unknown, np.float32)
    with pytest.raises(TkError):
        assign_classes(np.array(similarity, np.float32), unknown, mode)


def test_best_pairs__pairs_without_gain_are_never_made() -> None:
    assert best_pairs(np.array([[0.0, -1.0], [-2.0, 0.0]])).tolist() == [-1, -1]
    assert best_pairs(np.array([[-1.0, 2.0], [-1.0, 3.0]])).tolist() == [-1, 1]


def test_margins__ahead_behind_and_unknown() -> None:
    similarity = np.array([[0.9, 0.5, 0.25], [0.75, 0.5, 0.1], [0.1, 0.3, 0.2]], np.float32)
    margin, runner_up = margins(similarity, [0, 1, None])
    assert margin == [pytest.approx(0.4, abs=1e-6), pytest.approx(-0.25), None]
    assert runner_up == [1, 0, 1]


def test_margins__one_class_or_none() -> None:
    one = np.array([[0.9], [0.1]], np.float32)
    assert margins(one, [0, None]) == ([None, None], [None, 0])
    assert margins(np.zeros((2, 0), np.float32), [None, None]) == ([None, None], [None, None])
    assert margins(np.zeros((0, 3), np.float32), []) == ([], [])
