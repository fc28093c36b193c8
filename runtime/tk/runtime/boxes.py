"""Boxes: overlap, non-maximum suppression, clipping, enlarging."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]

NMS_BLOCK = 128
"""Boxes whose overlaps with all later ones are in memory at a time."""


def area(boxes: Boxes) -> npt.NDArray[np.float32]:
    """Area of each box, 0 for one that is turned inside out.

    Args:
        boxes: (N, 4) float32, xyxy, pixels.

    Returns:
        (N,) float32, square pixels.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas: npt.NDArray[np.float32] = sides[:, 0] * sides[:, 1]
    return areas


def iou_matrix(a: Boxes, b: Boxes) -> npt.NDArray[np.float32]:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: (N, 4) float32, xyxy, pixels.
        b: (M, 4) float32, xyxy, pixels.

    Returns:
        (N, M) float32 in [0, 1]; 0 where the union has no area.
    """
    a = np.asarray(a, np.float32).reshape(-1, 4)
    b = np.asarray(b, np.float32).reshape(-1, 4)
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = area(a)[:, None] + area(b) - shared
    out: npt.NDArray[np.float32] = np.zeros_like(shared)
    np.divide(shared, union, out=out, where=union > 0)
    return out


def nms(boxes: Boxes, scores: npt.NDArray[np.float32], iou: float) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression over all boxes, whatever their class.

    Args:
        boxes: (N, 4) float32, xyxy, pixels.
        scores: (N,) float32, higher is better.
        iou: a box is dropped when it overlaps a better kept one by more than this, in [0, 1].

    Returns:
        (K,) int64, indices of the kept boxes by descending score; equal scores by index.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    boxes = boxes[order]
    dropped = np.zeros(len(boxes), np.bool_)
    keep = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), NMS_BLOCK):
        overlaps = iou_matrix(boxes[start : start + NMS_BLOCK], boxes[start:]) > iou
        for i, row in enumerate(overlaps, start):
            if not dropped[i]:
                keep[i] = True
                dropped[start:] |= row
    return order[keep]


def clip(boxes: Boxes, width: int, height: int) -> Boxes:
    """Cut boxes to the image.

    Args:
        boxes: (N, 4) float32, xyxy, pixels.
        width: image width, pixels.
        height: image height, pixels.

    Returns:
        (N, 4) float32, a copy; a box outside the image becomes one without area.
    """
    limits = np.array([width, height, width, height], np.float32)
    cut: Boxes = np.clip(np.asarray(boxes, np.float32).reshape(-1, 4), 0, limits)
    return cut


def enlarge(boxes: Boxes, margin: float) -> Boxes:
    """Move each side outwards by `margin` times the longer side of its box.

    Args:
        boxes: (N, 4) float32, xyxy, pixels.
        margin: fraction of the longer side; negative shrinks.

    Returns:
        (N, 4) float32, a copy, not clipped to the image.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    step = np.float32(margin) * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    return np.hstack([boxes[:, :2] - step, boxes[:, 2:] + step]).astype(np.float32)


def valid(boxes: Boxes) -> npt.NDArray[np.bool_]:
    """Say which boxes are finite and have an area.

    Args:
        boxes: (N, 4) float32, xyxy, pixels.

    Returns:
        (N,) bool.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    # Coordinates near the float32 limit give an infinite area, which no later step can use.
    with np.errstate(over="ignore", invalid="ignore"):
        areas = area(boxes)
    good = np.isfinite(boxes) & (np.isfinite(areas) & (areas > 0))[:, None]
    return np.asarray(good.all(axis=1))
