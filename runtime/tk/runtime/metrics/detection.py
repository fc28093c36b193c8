"""Average precision of detections, as COCO defines it (101 points of recall)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tk.runtime.boxes import Boxes, iou_matrix

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
RECALLS = np.linspace(0, 1, 101)


def average_precision(
    predictions: Sequence[tuple[Boxes, Floats]], truths: Sequence[Boxes], iou: float = 0.5
) -> float:
    """Average precision over all images, whatever the class.

    Unlike COCO's default there is no limit of 100 detections per image.

    Args:
        predictions: per image (N, 4) float32 boxes, xyxy, pixels, and (N,) float32 scores.
        truths: per image (M, 4) float32 boxes, xyxy, pixels.
        iou: the least overlap of a hit.

    Returns:
        From 0 to 1; NaN when there is no true box.
    """
    total = sum(len(boxes) for boxes in truths)
    if not total:
        return float("nan")
    scores: list[Floats] = [np.zeros(0, np.float32)]
    hits: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    for (boxes, confidence), true in zip(predictions, truths, strict=True):
        order = np.argsort(-confidence, kind="stable")
        scores.append(confidence[order])
        hits.append(_hits(iou_matrix(boxes[order], true), iou))
    ranked = np.concatenate(hits)[np.argsort(-np.concatenate(scores), kind="stable")]
    return _area(ranked, total)


def mean_average_precision(
    predictions: Sequence[tuple[Boxes, Floats, Labels]],
    truths: Sequence[tuple[Boxes, Labels]],
    iou: float = 0.5,
) -> float:
    """Mean of the average precisions of the classes that have a true box.

    Args:
        predictions: per image boxes, scores and (N,) int64 class indices.
        truths: per image boxes and (M,) int64 class indices.
        iou: the least overlap of a hit.

    Returns:
        From 0 to 1; NaN when there is no true box.
    """
    per_class = [
        average_precision(
            [(boxes[own == name], scores[own == name]) for boxes, scores, own in predictions],
            [boxes[own == name] for boxes, own in truths],
            iou,
        )
        for name in sorted({int(name) for _, own in truths for name in own})
    ]
    return float(np.mean(per_class)) if per_class else float("nan")


def _hits(overlap: Floats, iou: float) -> npt.NDArray[np.bool_]:
    """Which predictions, best score first, hit a true box that no better one has taken.

    Args:
        overlap: (N, M) float32.
        iou: the least overlap of a hit.

    Returns:
        (N,) bool.
    """
    hits = np.zeros(len(overlap), np.bool_)
    free = overlap.copy()
    for i in range(len(overlap) if overlap.size else 0):
        best = int(free[i].argmax())
        if free[i, best] >= iou:
            hits[i] = True
            free[:, best] = -1
    return hits


def _area(ranked: npt.NDArray[np.bool_], total: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one.

    Args:
        ranked: (N,) bool, hits by descending score.
        total: number of true boxes.
    """
    found = np.cumsum(ranked)
    precision = found / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(found / total, RECALLS, side="left")
    reached = place < len(ranked)
    return float(envelope[place[reached]].sum() / len(RECALLS))
