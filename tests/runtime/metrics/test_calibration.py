"""Calibration, by hand and against scikit-learn's calibration curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tk.runtime.metrics.calibration import expected_calibration_error, reliability

TRUE = np.asarray([0, 0, 1, 1, 0])
SAID = np.asarray([[0.95, 0.05], [0.55, 0.45], [0.6, 0.4], [0.1, 0.9], [1.0, 0.0]])
"""Confidences 0.95, 0.55, 0.6, 0.9, 1.0; the third is wrong."""


def test_reliability__by_hand() -> None:
    found = reliability(TRUE, SAID, bins=5)
    # Bins (0.4, 0.6]: 0.55 right, 0.6 wrong; (0.8, 1.0]: 0.95, 0.9, 1.0, all right.
    assert found.counts.tolist() == [0, 0, 2, 0, 3]
    assert found.confidence[[2, 4]] == pytest.approx([0.575, 0.95])
    assert found.accuracy[[2, 4]].tolist() == [0.5, 1.0]
    assert np.isnan(found.accuracy[[0, 1, 3]]).all()
    expected = 2 / 5 * (0.575 - 0.5) + 3 / 5 * (1 - 0.95)
    assert expected_calibration_error(TRUE, SAID, bins=5) == pytest.approx(expected)


def test_reliability__as_scikit_learn_bins_the_likeliest_class() -> None:
    rng = np.random.default_rng(0)
    said = rng.dirichlet(np.full(4, 0.4), 500)
    true = rng.integers(0, 4, 500)
    found = reliability(true, said, bins=10)
    right = said.argmax(axis=1) == true
    shares, means = calibration_curve(right, said.max(axis=1), n_bins=10)
    used = found.counts > 0
    assert found.accuracy[used] == pytest.approx(shares)
    assert found.confidence[used] == pytest.approx(means)
    weights = found.counts[used] / 500
    error = expected_calibration_error(true, said, bins=10)
    assert error == pytest.approx(float((weights * np.abs(shares - means)).sum()))


def test_calibration_error__ends() -> None:
    sure = np.eye(3)[[0, 1, 2, 2]]
    assert expected_calibration_error(np.asarray([0, 1, 2, 2]), sure) == 0
    assert expected_calibration_error(np.asarray([1, 2, 0, 0]), sure) == 1
    assert math.isnan(expected_calibration_error(np.zeros(0, np.int64), np.zeros((0, 3))))


def test_reliability__refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match="5 true classes and 4 rows"):
        reliability(TRUE, SAID[:4])
