"""One split as the best weights see it, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tk.runtime.errors import TkError
from tk.runtime.metrics.classification import confusion_matrix
from tk.runtime.preprocess import Image


@dataclass(frozen=True)
class Measured:
    """One split as the best weights see it.

    Attributes:
        files: N names relative to the data folder, POSIX.
        labels: (N,) int64 class indices.
        embeddings: (N, D) float32, unit length.
        probabilities: (N, C) float32, rows sum to 1.
        canvas: index -> (S, S, 3) uint8 RGB, what the model saw of that crop.
    """

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    canvas: Callable[[int], Image]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) int64, the most probable class of each crop."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class ClassScore:
    """How one class fares; a figure that is not defined is NaN.

    Attributes:
        support: crops of this class.
        right: those of them that were recognised.
    """

    name: str
    support: int
    right: int
    precision: float
    recall: float
    f1: float
    auc: float


def finite_part(measured: Measured) -> tuple[Measured, int]:
    """The crops whose embedding and probabilities are all finite, and the number left out."""
    if not len(measured):
        return measured, 0
    finite = np.isfinite(measured.embeddings).all(axis=1)
    finite &= np.isfinite(measured.probabilities).all(axis=1)
    kept = np.flatnonzero(finite)
    if len(kept) == len(measured):
        return measured, 0
    part = Measured(
        files=tuple(measured.files[i] for i in kept),
        labels=measured.labels[kept],
        embeddings=measured.embeddings[kept],
        probabilities=measured.probabilities[kept],
        canvas=lambda i: measured.canvas(int(kept[i])),
    )
    return part, len(measured) - len(kept)


def thumbnail(measured: Measured, index: int, side: int) -> Image:
    """What the model saw, at most `side` pixels large; grey when the file cannot be read any more.

    Returns:
        (side, side, 3) uint8 RGB, or smaller where the canvas is smaller.
    """
    try:
        canvas = measured.canvas(index)
    except (TkError, OSError):
        return np.full((side, side, 3), 160, np.uint8)
    scale = side / max(canvas.shape[:2])
    if scale >= 1:
        return canvas
    size = max(1, round(canvas.shape[1] * scale)), max(1, round(canvas.shape[0] * scale))
    return np.asarray(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), np.uint8)


def class_scores(classes: tuple[str, ...], measured: Measured) -> list[ClassScore]:
    """Figures of each class, in the order of `classes`."""
    table = confusion_matrix(measured.labels, measured.predicted, len(classes))
    scores = []
    for index, name in enumerate(classes):
        support, answers = int(table[index].sum()), int(table[:, index].sum())
        right = int(table[index, index])
        score = ClassScore(
            name=name,
            support=support,
            right=right,
            precision=_ratio(right, answers),
            recall=_ratio(right, support),
            f1=_ratio(2 * right, support + answers),
            auc=_auc(measured, index),
        )
        scores.append(score)
    return scores


def worst_first(scores: list[ClassScore]) -> list[ClassScore]:
    """By F1, then recall, then name; classes without a crop last."""
    return sorted(scores, key=lambda one: (not one.support, one.f1, one.recall, one.name))


def mean_f1(scores: list[ClassScore]) -> float:
    """Mean F1 of the classes that occur among the true or the predicted ones; NaN if none."""
    found = [one.f1 for one in scores if not np.isnan(one.f1)]
    return float(np.mean(found)) if found else float("nan")


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _auc(measured: Measured, index: int) -> float:
    """Area under the ROC curve, this class against the rest."""
    own = measured.labels == index
    if not own.any() or own.all():
        return float("nan")
    return float(roc_auc_score(own, measured.probabilities[:, index]))
