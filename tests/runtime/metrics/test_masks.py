from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from tk.runtime.metrics.masks import mask_iou


def test_mask_iou__equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        a, b = generator.random((2, 9, 7)) < generator.random()
        if (a | b).any():
            assert mask_iou(a, b) == pytest.approx(jaccard_score(a.ravel(), b.ravel()))


def test_mask_iou__empty_masks_and_other_sizes() -> None:
    empty, full = np.zeros((3, 4), np.bool_), np.ones((3, 4), np.bool_)
    assert (mask_iou(empty, empty), mask_iou(empty, full), mask_iou(full, full)) == (1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="differ in size"):
        mask_iou(full, full.T)
