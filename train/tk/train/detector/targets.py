"""What each cell of the detector should say, given the boxes of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tk.train.detector.model import STRIDE

Floats = NDArray[np.float32]
SPREAD = 0.54 / 6
"""Standard deviation of a peak as a share of the box's side."""


def make_targets(
    boxes: Floats, labels: NDArray[np.int64], classes: int, height: int, width: int
) -> tuple[Floats, Floats, Floats]:
    """Paint heat map, box map and weight map.

    Args:
        boxes: (N, 4) float32 xyxy, canvas pixels, inside the canvas.
        labels: (N,) int64 class indices.
        classes: number of classes, C.
        height, width: canvas size, pixels.

    Returns:
        heat: (C, h, w) float32 0..1, exactly 1 at the cell of each centre;
        target: (4, h, w) float32 xyxy in canvas pixels, where the weight is above 0;
        weight: (h, w) float32, how much a cell's box counts; sums to 1 per box that is not covered.
    """
    rows, columns = height // STRIDE, width // STRIDE
    heat = np.zeros((classes, rows, columns), np.float32)
    target = np.zeros((4, rows, columns), np.float32)
    weight = np.zeros((rows, columns), np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    # Small boxes are painted last: where two overlap, the cell belongs to the smaller one.
    for index in np.argsort(-sides.prod(axis=1), kind="stable"):
        box, label = boxes[index], labels[index]
        centre = (box[:2] + box[2:]) / 2 / STRIDE
        column = min(int(centre[0]), columns - 1)
        row = min(int(centre[1]), rows - 1)
        sigma = np.maximum(sides[index] / STRIDE * SPREAD, 0.4)
        across = np.exp(-0.5 * ((np.arange(columns) - column) / sigma[0]) ** 2)
        down = np.exp(-0.5 * ((np.arange(rows) - row) / sigma[1]) ** 2)
        peak = (down[:, None] * across).astype(np.float32)
        peak[peak < 0.02] = 0.0
        np.maximum(heat[label], peak, out=heat[label])
        near = peak > 0.1
        target[:, near] = box[:, None]
        weight[near] = peak[near] / peak[near].sum()
    return heat, target, weight
