"""Figures of merit of a classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


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


def _same_length(true: Labels, predicted: Labels) -> None:
    if len(true) != len(predicted):
        raise ValueError(f"{len(true)} true classes and {len(predicted)} predicted ones")
