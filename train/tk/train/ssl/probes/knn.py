"""How good features are without training anything on them: the weighted nearest neighbours of DINO.

Wu et al. 2018 (arXiv:1805.01978, section 3.4); k and temperature as in `eval_knn.py` of DINO.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.train.ssl.probes.features import Features, Labels, check_split, unit

BLOCK = 1024
"""Questions per matrix product: a block against 10^6 references is 4 GB."""


def knn_accuracy(
    train: Features,
    train_labels: Labels,
    test: Features,
    test_labels: Labels,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of questions whose class wins the vote of their neighbours.

    A neighbour votes for its class with exp(cosine / temperature). Equally near neighbours are
    taken in the order of the references, and of equal classes the first wins.

    Args:
        train: (N, D) features of the references, any real type.
        train_labels: (N,) integers from 0.
        test: (M, D) features of the questions.
        test_labels: (M,).
        k: neighbours; all references when there are fewer.
        temperature: above 0; infinity counts heads.

    Returns:
        0..1.

    Raises:
        TkError: shapes that do not fit, nothing to compare, features that are not finite.
    """
    check_split(train, train_labels, test, test_labels)
    references, questions = unit(train), unit(test)
    k = min(k, len(references))
    classes = int(train_labels.max()) + 1
    right = 0
    for start in range(0, len(questions), BLOCK):
        block = questions[start : start + BLOCK]
        guesses = _vote(block @ references.T, train_labels, classes, k, temperature)
        right += int((guesses == test_labels[start : start + BLOCK]).sum())
    return right / len(questions)


def _vote(
    cosines: NDArray[np.float32], labels: Labels, classes: int, k: int, temperature: float
) -> Labels:
    """The winning class of each row of (m, N) cosines."""
    order = _nearest(cosines, k)
    near = np.take_along_axis(cosines, order, axis=1).astype(np.float64)
    # Relative to the nearest one: the same winner, and no temperature overflows.
    weights = np.exp((near - near[:, :1]) / temperature)
    votes = np.zeros((len(cosines), classes))
    np.add.at(votes, (np.arange(len(cosines))[:, None], labels[order]), weights)
    return np.asarray(votes.argmax(axis=1), np.int64)


def _nearest(cosines: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the k largest of each row, largest first, equal ones in their order."""
    # Sorting k of many is ten times as fast as sorting all ...
    some = np.sort(np.argpartition(-cosines, k - 1, axis=1)[:, :k], axis=1)
    found = np.take_along_axis(cosines, some, axis=1)
    order = np.take_along_axis(some, np.argsort(-found, axis=1, kind="stable"), axis=1)
    # ... but does not say which of equal ones it leaves out.
    tied = (cosines >= found.min(axis=1, keepdims=True)).sum(axis=1) > k
    order[tied] = np.argsort(-cosines[tied], axis=1, kind="stable")[:, :k]
    return np.asarray(order, np.int64)
