"""Overlap of masks."""

from __future__ import annotations

import numpy as np

from tk.runtime.masks import Bits


def mask_iou(a: Bits, b: Bits) -> float:
    """Intersection over union of two masks of the same size.

    Args:
        a: (H, W) bool.
        b: (H, W) bool.

    Returns:
        From 0 to 1; two empty masks agree: 1.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks differ in size: {a.shape} and {b.shape}")
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
