from __future__ import annotations

import itertools

import numpy as np
import pytest

from tk.runtime.boxes import Boxes, iou_matrix
from tk.runtime.metrics.matching import match_boxes


def random_boxes(seed: int, count: int) -> Boxes:
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, 6, (count, 2))
    return np.hstack([corner, corner + generator.uniform(6, 12, (count, 2))]).astype(np.float32)


def best_by_trying(predicted: Boxes, true: Boxes, iou: float) -> tuple[int, float]:
    """Most pairs, then greatest overlap, over every way to match."""
    overlap = iou_matrix(predicted, true)
    if len(predicted) > len(true):
        overlap = overlap.T
    best = (0, 0.0)
    for columns in itertools.permutations(range(overlap.shape[1]), overlap.shape[0]):
        made = [overlap[i, j] for i, j in enumerate(columns) if overlap[i, j] >= iou]
        best = max(best, (len(made), float(sum(made))))
    return best


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (4, 5), (6, 3)])
@pytest.mark.parametrize("iou", [0.1, 0.4])
def test_match_boxes__equals_trying_everything(n: int, m: int, iou: float) -> None:
    for seed in range(6):
        predicted, true = random_boxes(seed, n), random_boxes(seed + 100, m)
        pairs, overlaps = match_boxes(predicted, true, iou)
        assert pairs.shape == (len(overlaps), 2) and pairs.dtype == np.int64
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
        assert (overlaps >= iou).all()
        table = iou_matrix(predicted, true)
        assert overlaps.tolist() == [table[i, j] for i, j in pairs]
        count, total = best_by_trying(predicted, true, iou)
        assert len(pairs) == count and overlaps.sum() == pytest.approx(total, abs=1e-5)


def test_match_boxes__a_second_pair_is_worth_more_than_a_better_first() -> None:
    true = np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32)
    predicted = np.array([[0, 0, 10, 10], [-4, 0, 6, 10]], np.float32)
    pairs, _ = match_boxes(predicted, true, 0.4)
    assert pairs.tolist() == [[0, 1], [1, 0]]


def test_match_boxes__overlap_equal_to_the_limit_is_a_pair() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    half = np.array([[0, 0, 10, 5]], np.float32)
    pairs, overlaps = match_boxes(half, box, 0.5)
    assert pairs.tolist() == [[0, 0]] and overlaps.tolist() == [0.5]
