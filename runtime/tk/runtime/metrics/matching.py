"""One-to-one matching of predicted boxes to true ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tk.runtime.assign import best_pairs
from tk.runtime.boxes import Boxes, iou_matrix


def match_boxes(
    predicted: Boxes, true: Boxes, iou: float = 0.5
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Match as many boxes as possible, and among those matchings take the greatest total overlap.

    Scores have no part in it: it compares two sets of boxes. Average precision, where the better
    score chooses first, is in `metrics.detection`.

    Args:
        predicted: (N, 4) float32, xyxy, pixels.
        true: (M, 4) float32, xyxy, pixels.
        iou: the least overlap of a pair, in (0, 1].

    Returns:
        (K, 2) int64 indices (predicted, true) by predicted, and (K,) float32 overlaps.
    """
    overlap = iou_matrix(predicted, true)
    # One more pair is worth more than all overlaps together.
    reward = 1.0 + min(overlap.shape)
    chosen = best_pairs(np.where(overlap >= iou, overlap + reward, 0.0))
    rows = np.flatnonzero(chosen >= 0)
    columns = chosen[rows]
    return np.stack([rows, columns], axis=1), overlap[rows, columns]
