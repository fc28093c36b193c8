from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sk_confusion_matrix

from tk.runtime.metrics.classification import accuracy, confusion_matrix, macro_f1

EMPTY = np.zeros(0, np.int64)


@pytest.mark.parametrize("seed", range(6))
def test_classification__equals_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Class 5 is never true and class 6 never occurs at all.
    true = generator.integers(0, 5, 80)
    predicted = np.where(generator.random(80) < 0.6, true, generator.integers(0, 6, 80))
    assert accuracy(true, predicted) == pytest.approx(accuracy_score(true, predicted))
    expected = f1_score(true, predicted, average="macro", zero_division=0)
    assert macro_f1(true, predicted) == pytest.approx(expected)
    table = confusion_matrix(true, predicted, 7)
    assert table.dtype == np.int64
    np.testing.assert_array_equal(table, sk_confusion_matrix(true, predicted, labels=range(7)))


def test_macro_f1__class_between_that_never_occurs() -> None:
    assert macro_f1(np.array([0, 2, 2]), np.array([0, 2, 2])) == 1.0


def test_classification__nothing() -> None:
    assert np.isnan(accuracy(EMPTY, EMPTY)) and np.isnan(macro_f1(EMPTY, EMPTY))
    assert not confusion_matrix(EMPTY, EMPTY, 3).any()


def test_classification__refuses_what_does_not_fit() -> None:
    one, two = np.array([0]), np.array([0, 1])
    for function in (accuracy, macro_f1):
        with pytest.raises(ValueError, match="predicted"):
            function(one, two)
    with pytest.raises(ValueError, match="not 0"):
        confusion_matrix(two, two, 1)
    with pytest.raises(ValueError, match="not 0"):
        confusion_matrix(-one - 1, one, 3)
