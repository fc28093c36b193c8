"""Features and labels as probes take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import CheckFailed, TkError

Features = NDArray[Any]
Labels = NDArray[np.int64]


def check_features(features: Features, least: int = 1) -> None:
    """Refuse what has no figures in it.

    Args:
        features: should be (N, D), finite.
        least: rows that are needed.

    Raises:
        TkError: another shape, or too few rows.
        CheckFailed: NaN or infinity.
    """
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise TkError(
            "a probe cannot use these features",
            expected=f"(N, D) with N of {least} or more",
            found=str(features.shape),
        )
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise CheckFailed(
            "the features are not numbers: the network is broken",
            found=f"NaN or infinity in {int(bad.sum())} of {len(features)} pictures",
            fix="go on from an earlier checkpoint with a lower learning rate",
        )


def check_split(train: Features, train_labels: Labels, test: Features, test_labels: Labels) -> None:
    """Refuse references and questions that do not belong together.

    Raises:
        TkError, CheckFailed: as `check_features`; different widths; labels of another number or
            below 0.
    """
    for features, labels in ((train, train_labels), (test, test_labels)):
        check_features(features)
        if labels.shape != (len(features),) or labels.min() < 0:
            raise TkError(
                "a probe cannot use these labels",
                expected=f"{len(features)} numbers from 0",
                found=f"{labels.shape}, least {labels.min() if labels.size else 'none'}",
            )
    if train.shape[1] != test.shape[1]:
        raise TkError(
            "references and questions are of different networks",
            expected=f"{train.shape[1]} features",
            found=str(test.shape[1]),
        )


def unit(features: Features) -> NDArray[np.float32]:
    """Rows of length 1; rows of zeros stay."""
    rows = np.asarray(features, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
