"""Agreement of two detectors, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.metrics.detections_kept import DetectionsKept, detections_kept

Side = tuple[NDArray[np.float32], NDArray[np.float32]]


def side(*rows: tuple[float, float, float]) -> Side:
    """Squares of side 10 at (x, y), with their scores."""
    table = np.asarray(rows, np.float32).reshape(-1, 3)
    return np.concatenate([table[:, :2], table[:, :2] + 10], axis=1), table[:, 2:]


def test_kept__equal_runs_and_no_detection_at_all() -> None:
    one = side((0, 0, 0.9), (50, 0, 0.3))
    assert detections_kept(one, one, 0.05) == DetectionsKept(4, 0, 2.0, 0.0, 2)
    nothing = detections_kept(side(), side((0, 0, 0.1)), 0.05)
    assert nothing == DetectionsKept() and nothing.kept == 1.0


def test_kept__overlap_and_difference_are_of_pairs() -> None:
    found = detections_kept(side((0, 0, 0.9)), side((2, 0, 0.8)), 0.05)
    assert found.mean_overlap == pytest.approx(8 / 12)
    assert found.mean_difference == pytest.approx(0.1, abs=1e-6) and found.kept == 1.0
    apart = detections_kept(side((0, 0, 0.9)), side((5, 0, 0.9)), 0.05)  # an IoU of a third
    assert (apart.found, apart.missed, apart.pairs) == (2, 2, 0) and apart.kept == 0.0


@pytest.mark.parametrize(("score", "missed"), [(0.26, 0), (0.24, 0), (0.21, 0), (0.19, 1)])
def test_kept__a_score_near_the_threshold_may_end_on_either_side(score: float, missed: int) -> None:
    both = side((0, 0, 0.9), (50, 0, 0.26)), side((0, 0, 0.9), (50, 0, score))
    for reference, found in (both, both[::-1]):
        assert detections_kept(reference, found, 0.05).missed == missed


def test_kept__pairs_below_the_threshold_are_not_seen() -> None:
    found = detections_kept(side((0, 0, 0.22)), side((0, 0, 0.24)), 0.05)
    assert found == DetectionsKept()


def test_kept__duplicates_are_removed_first() -> None:
    double = side((0, 0, 0.9), (1, 0, 0.8))
    assert detections_kept(double, side((0, 0, 0.9)), 0.05).kept == 1.0


def test_kept__is_added_up_over_pictures() -> None:
    good = detections_kept(side((0, 0, 0.9)), side((0, 0, 0.9)), 0.05)
    bad = detections_kept(side((0, 0, 0.9)), side(), 0.05)
    assert (good + bad).kept == pytest.approx(2 / 3)


def test_kept__another_class_is_another_object() -> None:
    box = np.asarray([[0, 0, 10, 10]], np.float32)

    def of(*scores: float) -> Side:
        return box, np.asarray([scores], np.float32)

    assert detections_kept(of(0.8, 0.1), of(0.8, 0.1), 0.05).kept == 1.0
    assert detections_kept(of(0.8, 0.1), of(0.1, 0.8), 0.05).kept == 0.0
    doubt = detections_kept(of(0.5, 0.48), of(0.49, 0.5), 0.05)  # either may come first
    assert doubt.kept == 1.0 and doubt.difference == pytest.approx(0.01)
