"""Figures of merit of a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class, all from 0 to 1.

    Attributes:
        precision, recall, f1: 0 where undefined (never predicted, or never true).
        auc: area under the ROC curve, this class against the rest; NaN where undefined.
        support: how many examples of the class there are.
    """

    precision: float
    recall: float
    f1: float
    auc: float
    support: int


def accuracy(true: Labels, predicted: Labels) -> float:
    """Share of right answers.

    Args:
        true: (N,) int64 class indices.
        predicted: (N,) int64 class indices.

    Returns:
        From 0 to 1; NaN when N is 0.
    """
    _same_length(true, predicted)
    return float(np.mean(true == predicted)) if len(true) else float("nan")


def confusion_matrix(true: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Count answers by class.

    Args:
        true: (N,) int64, 0 to classes - 1.
        predicted: (N,) int64, 0 to classes - 1.
        classes: number of classes C.

    Returns:
        (C, C) int64, row = true class, column = predicted class.
    """
    _same_length(true, predicted)
    both = np.concatenate([true, predicted])
    if len(both) and not 0 <= both.min() <= both.max() < classes:
        raise ValueError(f"class indices {both.min()}..{both.max()} are not 0..{classes - 1}")
    cells = np.asarray(true, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def macro_f1(true: Labels, predicted: Labels) -> float:
    """Mean F1 of the classes that occur among the true or the predicted ones.

    Args:
        true: (N,) int64 class indices, at least 0.
        predicted: (N,) int64 class indices, at least 0.

    Returns:
        From 0 to 1; NaN when N is 0.
    """
    if not len(true):
        return float("nan")
    table = confusion_matrix(true, predicted, int(max(true.max(), predicted.max())) + 1)
    either = table.sum(axis=0) + table.sum(axis=1)
    seen = either > 0
    return float(np.mean(2 * np.diag(table)[seen] / either[seen]))


def roc_auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative; a tie is a half.

    Args:
        positive: (N,) bool.
        scores: (N,) float, higher for a positive.

    Returns:
        From 0 to 1; NaN when there is no positive, no negative, or a score is NaN.
    """
    _same_length(positive, scores, "scores")
    total = int(positive.sum())
    pairs = total * (len(positive) - total)
    if not pairs or np.isnan(scores).any():
        return float("nan")
    values, place = np.unique(scores, return_inverse=True)
    place = place.ravel()
    positives = np.bincount(place[positive], minlength=len(values))
    negatives = np.bincount(place[~positive], minlength=len(values))
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + 0.5 * negatives)) / pairs)


def per_class(true: Labels, scores: npt.NDArray[np.floating]) -> list[ClassFigures]:
    """Figures of every class; the prediction is the class of the highest score.

    Args:
        true: (N,) int64, 0 to C - 1.
        scores: (N, C) float, higher is likelier.
    """
    _same_length(true, scores, "rows of scores")
    classes = scores.shape[1]
    predicted = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
    table = confusion_matrix(true, predicted, classes)
    hits, answers, support = np.diag(table), table.sum(axis=0), table.sum(axis=1)
    return [
        ClassFigures(
            precision=_share(hits[c], answers[c]),
            recall=_share(hits[c], support[c]),
            f1=_share(2 * hits[c], answers[c] + support[c]),
            auc=roc_auc(true == c, scores[:, c]),
            support=int(support[c]),
        )
        for c in range(classes)
    ]


def macro_auc(true: Labels, scores: npt.NDArray[np.floating]) -> float:
    """Mean one-vs-rest area under the ROC curve of the classes where it is defined.

    Args:
        true: (N,) int64, 0 to C - 1; classes may be missing.
        scores: (N, C) float, higher is likelier.

    Returns:
        From 0 to 1; NaN when no class has examples both of it and not of it.
    """
    _same_length(true, scores, "rows of scores")
    present = np.unique(true)
    if len(present) < 2:
        return float("nan")
    return float(np.mean([roc_auc(true == c, scores[:, c]) for c in present]))


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0


def _same_length(
    true: npt.NDArray[np.generic], other: npt.NDArray[np.generic], what: str = "predicted ones"
) -> None:
    if len(true) != len(other):
        raise ValueError(f"{len(true)} true classes and {len(other)} {what}")
