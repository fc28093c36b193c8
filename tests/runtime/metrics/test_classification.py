from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)
from sklearn.metrics import confusion_matrix as sk_confusion_matrix

from tk.runtime.metrics.classification import (
    accuracy,
    confusion_matrix,
    macro_auc,
    macro_f1,
    per_class,
    roc_auc,
)

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


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_roc_auc__equals_scikit_learn(levels: int) -> None:
    generator = np.random.default_rng(levels)
    positive = generator.random(200) < 0.3
    scores = generator.integers(0, levels, 200) + levels * 0.2 * positive.round()
    scores = np.floor(scores) / levels  # few levels: many ties
    assert roc_auc(positive, scores) == pytest.approx(roc_auc_score(positive, scores))
    assert roc_auc(~positive, -scores) == pytest.approx(roc_auc(positive, scores))


@pytest.mark.parametrize(
    ("positive", "scores", "expected"),
    [
        ([False, True], [0.1, 0.2], 1.0),
        ([True, False], [0.1, 0.2], 0.0),
        ([True, False], [0.2, 0.2], 0.5),
        ([True, False, True], [-np.inf, 0.0, np.inf], 0.5),
        ([True, True], [0.1, 0.2], np.nan),
        ([False], [0.1], np.nan),
        ([], [], np.nan),
        ([True, False], [np.nan, 0.2], np.nan),
    ],
)
def test_roc_auc__by_hand(positive: list[bool], scores: list[float], expected: float) -> None:
    found = roc_auc(np.asarray(positive, np.bool_), np.asarray(scores, np.float64))
    assert found == pytest.approx(expected, nan_ok=True)


def noisy(
    seed: int, classes: int, absent: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """True classes, one of them never, and scores that tend to the right class."""
    generator = np.random.default_rng(seed)
    true = generator.choice([c for c in range(classes) if c != absent], 90)
    scores = generator.random((90, classes)).round(1)
    scores[np.arange(90), true] += 0.4
    return true, scores


@pytest.mark.parametrize("seed", range(4))
def test_per_class__equals_scikit_learn(seed: int) -> None:
    true, scores = noisy(seed, classes=6, absent=2)
    scores[:, 4] = -1.0  # never predicted
    figures = per_class(true, scores)
    expected = precision_recall_fscore_support(
        true, scores.argmax(axis=1), labels=range(6), zero_division=0
    )
    found = [(row.precision, row.recall, row.f1, row.support) for row in figures]
    np.testing.assert_allclose(found, np.transpose(expected))
    for name, row in enumerate(figures):
        if name == 2:
            assert np.isnan(row.auc) and row.support == 0
        else:
            assert row.auc == pytest.approx(roc_auc_score(true == name, scores[:, name]))
    assert macro_auc(true, scores) == pytest.approx(np.nanmean([row.auc for row in figures]))


def test_macro_auc__equals_scikit_learn_with_all_classes_there() -> None:
    true, scores = noisy(0, classes=5, absent=-1)
    shares = scores / scores.sum(axis=1, keepdims=True)
    expected = roc_auc_score(true, shares, multi_class="ovr", average="macro")
    assert macro_auc(true, shares) == pytest.approx(expected)


def test_figures__of_one_class_or_none() -> None:
    scores = np.ones((3, 2))
    assert np.isnan(macro_auc(np.zeros(3, np.int64), scores))
    assert np.isnan(macro_auc(EMPTY, np.zeros((0, 2))))
    assert [row.support for row in per_class(EMPTY, np.zeros((0, 2)))] == [0, 0]
    assert per_class(EMPTY, np.zeros((0, 0))) == []
    for function in (roc_auc, per_class, macro_auc):
        with pytest.raises(ValueError, match="scores"):
            function(np.zeros(2, np.int64), np.zeros((3, 2)))
