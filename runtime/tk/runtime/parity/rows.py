"""How equal two runs of a model are, row by row, in the figures of its task. No PyTorch.

Used by `tk export` (the gate, against PyTorch), by `tk verify` (again, on the machine that runs the
model) and by the benchmarks. Detections are compared by matching boxes, not by slot: near-equal
scores may swap places without meaning anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import iou_matrix
from tk.runtime.errors import TkError
from tk.runtime.parity.limits import THRESHOLDS, Measure

Tensors = Mapping[str, NDArray[Any]]
"""Named arrays to look at."""

CONFIDENT = 0.1
"""Boxes below this score may differ: no annotator keeps them."""

TIE = 0.05
"""Two best probabilities this near leave the class in doubt: rounding may choose."""

SAME_PLACE = 0.01
"""Pixels: boxes with all corners this near are one box, also when they have no area."""


def compare(
    task: str, part: str, expected: Tensors, found: Tensors, precision: str
) -> list[Measure]:
    """Compare all outputs of one part.

    Args:
        task, part: say which figures mean something.
        expected: outputs of the reference.
        found: outputs of the candidate, same shapes.
        precision: whose thresholds apply.

    Raises:
        TkError: shapes differ, or there are no thresholds for `precision`.
    """
    if precision not in THRESHOLDS:
        raise TkError(f"no parity thresholds for precision {precision!r}")
    for name, array in expected.items():
        if found[name].shape != array.shape:
            raise TkError(
                f"output {name!r} of part {part!r} has another shape than the reference",
                expected=str(array.shape),
                found=str(found[name].shape),
            )
    if (task, part) == ("detector", "model"):
        figures = _detector_figures(expected, found)
    elif (task, part) == ("segmenter", "decoder"):
        figures = _decoder_figures(expected, found)
    elif task == "classifier":
        figures = _classifier_figures(expected, found)
    else:
        figures = [(name, "cosine", row_cosine(expected[name], found[name])) for name in expected]
        if task != "embedder":  # whose vectors have unit length
            figures += [
                (name, "relative_difference", row_difference(expected[name], found[name]))
                for name in expected
            ]
    limits = THRESHOLDS[precision]
    return [Measure(output, metric, value, limits[metric]) for output, metric, value in figures]


def row_cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Smallest cosine between equal rows of two arrays `(B, …)`; NaN where one is not finite."""
    left = np.asarray(a, np.float64).reshape(len(a), -1)
    right = np.asarray(b, np.float64).reshape(len(b), -1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(norms, 1e-30)).min())


def row_difference(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Largest length of a difference between equal rows, in lengths of the row of `a`."""
    left = np.asarray(a, np.float64).reshape(len(a), -1)
    right = np.asarray(b, np.float64).reshape(len(b), -1)
    lengths = np.maximum(np.linalg.norm(left, axis=1), 1e-30)
    return float((np.linalg.norm(left - right, axis=1) / lengths).max())


def mask_overlaps(expected: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of each pair of masks; empty against empty is 1, NaN where a logit is not finite.

    Args:
        expected, found: (N, H, W) logits, object above 0.
    """
    logits = np.asarray(found, np.float32)
    ours, theirs = np.asarray(expected, np.float32) > 0, logits > 0
    union = (ours | theirs).sum(axis=(1, 2))
    overlap = np.where(union > 0, (ours & theirs).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)
    return np.where(np.isfinite(logits).all(axis=(1, 2)), overlap, np.nan)


def _detector_figures(expected: Tensors, found: Tensors) -> list[tuple[str, str, float]]:
    scores = "token_scores" if "token_scores" in expected else "scores"
    worst_iou, worst_score = 1.0, 0.0
    for row in range(len(expected["boxes"])):
        reference = _proposals(expected["boxes"][row], expected[scores][row])
        candidate = _proposals(found["boxes"][row], found[scores][row])
        if not all(np.isfinite(array).all() for array in (*reference, *candidate)):
            worst_iou = worst_score = float("nan")
            break
        # Both ways: a confident box that only one of the two has is found from its own side.
        for left, right in ((reference, candidate), (candidate, reference)):
            iou, difference = _matched(left, right)
            worst_iou, worst_score = min(worst_iou, iou), max(worst_score, difference)
    return [("boxes", "box_iou", worst_iou), (scores, "score_difference", worst_score)]


_Proposals = tuple[NDArray[np.float32], NDArray[np.float32]]


def _proposals(boxes: NDArray[np.generic], scores: NDArray[np.generic]) -> _Proposals:
    return np.asarray(boxes, np.float32), np.asarray(scores, np.float32)


def _matched(left: _Proposals, right: _Proposals) -> tuple[float, float]:
    """Match the confident rows of one picture one to one with rows of another run.

    Args:
        left, right: boxes (Q, 4) xyxy and scores (Q, C) of classes or tokens; the confidence of a
            row is its best score.

    Returns:
        Smallest overlap and largest difference of any score over the matched pairs.
    """
    keep = _confident(left[1])
    boxes, scores = left[0][keep], left[1][keep]
    overlap = iou_matrix(boxes, right[0])
    # A box without area overlaps nothing, not even itself.
    overlap[np.abs(boxes[:, None] - right[0]).max(axis=2) <= SAME_PLACE] = 1.0
    likeness = overlap - np.abs(scores.max(axis=1)[:, None] - right[1].max(axis=1))
    pairs = _assign(likeness)
    worst = overlap[np.arange(len(keep)), pairs].min()
    return float(worst), float(np.abs(scores - right[1][pairs]).max())


def _assign(likeness: NDArray[np.float32]) -> NDArray[np.intp]:
    """One column per row, all different, with the greatest sum; columns >= rows."""
    import lap

    best = likeness.argmax(axis=1)
    if len(np.unique(best)) == len(best):  # the usual case: no row wants the column of another
        return np.asarray(best, np.intp)
    columns = lap.lapjv(-likeness, extend_cost=True, return_cost=False)[0]
    return np.asarray(columns, np.intp)


def _confident(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Confident rows of one picture; the best one when there is none, so something is compared."""
    best = scores.max(axis=1)
    keep = np.flatnonzero(best >= CONFIDENT)
    return keep if len(keep) else np.asarray([best.argmax()])


def _decoder_figures(expected: Tensors, found: Tensors) -> list[tuple[str, str, float]]:
    worst = float(mask_overlaps(expected["logits"], found["logits"]).min())
    difference = np.abs(
        np.asarray(expected["iou"], np.float64) - np.asarray(found["iou"], np.float64)
    ).max()
    return [("logits", "mask_iou", worst), ("iou", "iou_difference", float(difference))]


def _classifier_figures(expected: Tensors, found: Tensors) -> list[tuple[str, str, float]]:
    """Logits as shares of their spread, probabilities, and classes that are not in doubt.

    The spread of a row is what lies between its largest and its smallest logit, but at least 1: of
    logits that are nearly equal only the absolute error means something (to the probabilities).
    """
    logits, other_logits = (np.asarray(side["logits"], np.float64) for side in (expected, found))
    shares, other_shares = (
        np.asarray(side["probabilities"], np.float64) for side in (expected, found)
    )
    spread = np.maximum(np.ptp(logits, axis=1), 1.0)
    off = float((np.abs(logits - other_logits).max(axis=1) / spread).max())
    moved = float(np.abs(shares - other_shares).max())
    best = np.sort(shares, axis=1)
    clear = best[:, -1] - best[:, -2:].min(axis=1) > TIE
    same = shares.argmax(axis=1) == other_shares.argmax(axis=1)
    agreement = float(same[clear].mean()) if clear.any() else 1.0
    if not all(np.isfinite(array).all() for array in (other_logits, other_shares)):
        off = moved = agreement = float("nan")
    return [
        ("logits", "logit_difference", off),
        ("probabilities", "probability_difference", moved),
        ("probabilities", "agreement", agreement),
    ]
