"""How equal two runs of a model are, in the figures of its task. No PyTorch.

Used by `tk export` (the gate, against PyTorch), by `tk verify` (again, on the machine that runs the
model) and by the benchmarks. Detections are compared by matching boxes, not by slot: near-equal
scores may swap places without meaning anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.boxes import iou_matrix
from tk.runtime.errors import TkError

Tensors = Mapping[str, NDArray[Any]]
"""Named arrays to look at."""

CONFIDENT = 0.1
"""Boxes below this score may differ: no annotator keeps them."""

THRESHOLDS: dict[str, dict[str, float]] = {
    "fp32": {
        "cosine": 0.9999,
        "box_iou": 0.99,
        "score_difference": 0.002,
        "mask_iou": 0.99,
        "iou_difference": 0.01,
    },
}
"""Precision -> metric -> the least (similarities) or the most (differences) that passes."""


@dataclass(frozen=True)
class Measure:
    """One figure of equality and its verdict.

    Attributes:
        output: of the graph.
        metric: `cosine`, `box_iou`, `score_difference`, `mask_iou` or `iou_difference`.
        value: the worst over all rows.
        threshold: what it had to reach.
    """

    output: str
    metric: str
    value: float
    threshold: float

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its threshold."""
        if self.metric.endswith("difference"):
            return self.value <= self.threshold
        return self.value >= self.threshold


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
    else:
        figures = [(name, "cosine", row_cosine(expected[name], found[name])) for name in expected]
    limits = THRESHOLDS[precision]
    return [Measure(output, metric, value, limits[metric]) for output, metric, value in figures]


def row_cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Smallest cosine between equal rows of two arrays `(B, …)`; NaN where one is not finite."""
    left = np.asarray(a, np.float64).reshape(len(a), -1)
    right = np.asarray(b, np.float64).reshape(len(b), -1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(norms, 1e-30)).min())


def _detector_figures(expected: Tensors, found: Tensors) -> list[tuple[str, str, float]]:
    worst_iou, worst_score = 1.0, 0.0
    for row in range(len(expected["boxes"])):
        ref_boxes, ref_scores = _confident(expected["boxes"][row], expected["scores"][row])
        boxes = np.asarray(found["boxes"][row], np.float32)
        scores = np.asarray(found["scores"][row], np.float32)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            return [
                ("boxes", "box_iou", float("nan")),
                ("scores", "score_difference", float("nan")),
            ]
        overlap = iou_matrix(ref_boxes, boxes)
        match = overlap.argmax(axis=1)
        worst_iou = min(worst_iou, float(overlap.max(axis=1).min()))
        difference = np.abs(ref_scores - scores[match]).max()
        worst_score = max(worst_score, float(difference))
    return [("boxes", "box_iou", worst_iou), ("scores", "score_difference", worst_score)]


def _confident(
    boxes: NDArray[np.generic], scores: NDArray[np.generic]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Confident rows of one picture; the best one when there is none, so something is compared."""
    all_scores = np.asarray(scores, np.float32)
    best = all_scores.max(axis=1)
    keep = np.flatnonzero(best >= CONFIDENT)
    if not len(keep):
        keep = np.asarray([best.argmax()])
    return np.asarray(boxes, np.float32)[keep], all_scores[keep]


def _decoder_figures(expected: Tensors, found: Tensors) -> list[tuple[str, str, float]]:
    reference = np.asarray(expected["logits"], np.float32) > 0
    logits = np.asarray(found["logits"], np.float32)
    candidate = logits > 0
    union = (reference | candidate).sum(axis=(1, 2))
    overlap = (reference & candidate).sum(axis=(1, 2))
    iou = np.where(union > 0, overlap / np.maximum(union, 1), 1.0)  # empty against empty is 1
    worst = float(iou.min()) if np.isfinite(logits).all() else float("nan")
    difference = np.abs(
        np.asarray(expected["iou"], np.float64) - np.asarray(found["iou"], np.float64)
    ).max()
    return [("logits", "mask_iou", worst), ("iou", "iou_difference", float(difference))]


def run_parts(task: str, sessions: Mapping[str, Session], inputs: Arrays) -> dict[str, Arrays]:
    """Run a whole model on probe inputs, each part on what the part before it gave.

    Args:
        task: of the bundle.
        sessions: part name -> session.
        inputs: `image` (B, H, W, 3) uint8, and `boxes` (N, 4) on the first picture's canvas for a
            segmenter.

    Returns:
        Part -> outputs.
    """
    if task != "segmenter":
        return {"model": sessions["model"].run({"image": inputs["image"]})}
    features = sessions["encoder"].run({"image": inputs["image"][:1]})
    decoded = sessions["decoder"].run({**features, "boxes": inputs["boxes"]})
    return {"encoder": features, "decoder": decoded}
