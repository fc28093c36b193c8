"""How right a run was, where pictures lie in folders that are named like classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tk.runtime.metrics.classification import accuracy, confusion_matrix, macro_f1
from tk.runtime.metrics.intervals import wilson

NOT_KNOWN = -1
"""The true class of a picture that lies in no folder of a class."""


def true_class(name: str, classes: Sequence[str]) -> int:
    """Place of the class whose folder a picture lies in, the nearest one; -1 for none.

    Args:
        name: of the picture, relative to the folder that is classified: `CLASS/a.png`,
            `CLASS/cropped/a.png`, `test/CLASS/a.png`.
        classes: of the model.
    """
    known = {unicodedata.normalize("NFC", kind): place for place, kind in enumerate(classes)}
    for folder in reversed(PurePosixPath(name).parts[:-1]):
        if folder in known:
            return known[folder]
    return NOT_KNOWN


def score(
    true: Sequence[int], predicted: Sequence[int], classes: Sequence[str]
) -> dict[str, Any] | None:
    """Accuracy with its 95 % interval (Wilson), macro-F1 and the confusion matrix.

    Args:
        true, predicted: places in `classes` of all pictures that could be read; -1 where the truth
            is not known.

    Returns:
        Plain JSON values; None when no truth is known.
    """
    truth, said = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    known = truth != NOT_KNOWN
    if not known.any():
        return None
    truth, said = truth[known], said[known]
    low, high = wilson(int((truth == said).sum()), len(truth))
    return {
        "images": len(truth),
        "of": len(known),
        "accuracy": {"value": accuracy(truth, said), "low": low, "high": high},
        "macro_f1": macro_f1(truth, said),
        "confusion": confusion_matrix(truth, said, len(classes)).tolist(),
    }
