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
from tk.runtime.manifest import Part
from tk.runtime.metrics.neighbours import neighbours_kept

Tensors = Mapping[str, NDArray[Any]]
"""Named arrays to look at."""

CONFIDENT = 0.1
"""Boxes below this score may differ: no annotator keeps them."""

TIE = 0.05
"""Two best probabilities this near leave the class in doubt: rounding may choose."""

SAME_PLACE = 0.01
"""Pixels: boxes with all corners this near are one box, also when they have no area."""

THRESHOLDS: dict[str, dict[str, float]] = {
    # Other orders of summation: an honest graph is equal to 1e-6, so anything near these is a bug.
    "fp32": {
        "cosine": 0.9999,
        "neighbours_kept": 0.99,
        "same_neighbour": 0.0,
        "box_iou": 0.99,
        "score_difference": 0.002,
        "mask_iou": 0.99,
        "iou_difference": 0.01,
        "logit_difference": 0.001,
        "probability_difference": 0.001,
        "agreement": 1.0,
    },
    # 11 bits: one rounding is 0.05 %, and a network that does not overflow keeps 0.9999 (an error
    # of 3 % of a vector's length is 0.9995). Overflow and lost numbers are far beyond: 0.02 to 0.9.
    "fp16": {
        "cosine": 0.9995,
        "neighbours_kept": 0.99,
        "same_neighbour": 0.0,
        "box_iou": 0.97,
        "score_difference": 0.01,
        "mask_iou": 0.97,
        "iou_difference": 0.02,
        "logit_difference": 0.01,
        "probability_difference": 0.01,
        "agreement": 1.0,
    },
    # 8 bits: one rounding is 0.4 %, eight times that of fp16; a sound ViT-S keeps 0.9999.
    "bf16": {
        "cosine": 0.998,
        "neighbours_kept": 0.97,
        "same_neighbour": 0.0,
        "box_iou": 0.95,
        "score_difference": 0.03,
        "mask_iou": 0.95,
        "iou_difference": 0.04,
        "logit_difference": 0.08,
        "probability_difference": 0.05,
        "agreement": 1.0,
    },
    # 256 steps per tensor. A sound ViT-S keeps 0.998; with 0.983 neighbours were seen to change
    # (field notes on one file in two engines), so the line lies between: 14 % of the length.
    "int8": {
        "cosine": 0.99,
        "neighbours_kept": 0.95,
        "same_neighbour": 0.0,
        "box_iou": 0.90,
        "score_difference": 0.05,
        "mask_iou": 0.90,
        "iou_difference": 0.05,
        "logit_difference": 0.15,
        "probability_difference": 0.1,
        "agreement": 1.0,
    },
}
"""Precision -> metric -> the least (similarities) or the most (differences) that passes.

Cosines, overlaps and differences are the worst over all rows, not their mean. Batch invariance is
judged by the same numbers: an engine may choose other kernels for another batch, and these differ
by as much as the precision rounds, never by more.

`neighbours_kept` (`tk.runtime.metrics.neighbours`) is summed over the images, for one neighbour
more or less is chance. Its scale is that of the embeddings: 1 as good as float32, 0 as good as by
lot; int8 may lose a twentieth of what there is to lose. `same_neighbour` is recorded and never
fails: of 16 images one is 6 %, and near-equal neighbours change places without harm.

Logits of a classifier may be off by the same share of their spread as the vectors of an embedder of
their length. That moves the probability of a class that is in doubt the most: by a quarter of the
error, in logits, per class. A class that is not in doubt (`TIE`) must stay, whatever the precision.
"""

FEWEST_NEIGHBOURS = 3
"""Images from which on a nearest other one says something."""


@dataclass(frozen=True)
class Measure:
    """One figure of equality and its verdict.

    Attributes:
        output: of the graph.
        metric: `cosine`, `neighbours_kept`, `same_neighbour`, `box_iou`, `score_difference`,
            `mask_iou`, `iou_difference`, `logit_difference`, `probability_difference` or
            `agreement`.
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
    elif task == "classifier":
        figures = _classifier_figures(expected, found)
    else:
        figures = [(name, "cosine", row_cosine(expected[name], found[name])) for name in expected]
    limits = THRESHOLDS[precision]
    return [Measure(output, metric, value, limits[metric]) for output, metric, value in figures]


def compare_neighbours(
    task: str, expected: Tensors, found: Tensors, precision: str
) -> list[Measure]:
    """Compare the nearest neighbours of embeddings; of other tasks, or too few images, nothing.

    Args:
        task: of the model.
        expected: outputs of the reference on different images.
        found: outputs of the candidate on the same ones.
        precision: whose thresholds apply.
    """
    if task != "embedder":
        return []
    limits = THRESHOLDS[precision]
    measures: list[Measure] = []
    for output, rows in expected.items():
        if len(rows) >= FEWEST_NEIGHBOURS:
            figures = neighbours_kept(rows, found[output])
            for metric, value in (
                ("neighbours_kept", figures.kept),
                ("same_neighbour", figures.same),
            ):
                measures.append(Measure(output, metric, value, limits[metric]))
    return measures


def row_cosine(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Smallest cosine between equal rows of two arrays `(B, …)`; NaN where one is not finite."""
    left = np.asarray(a, np.float64).reshape(len(a), -1)
    right = np.asarray(b, np.float64).reshape(len(b), -1)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(norms, 1e-30)).min())


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


def run_parts(task: str, sessions: Mapping[str, Session], inputs: Arrays) -> dict[str, Arrays]:
    """Run a whole model on probe inputs, each part on what the parts before it gave.

    Args:
        task: of the bundle.
        sessions: part name -> session, in the order of running.
        inputs: what comes from outside, by name: `image` (B, H, W, 3) uint8, `boxes` (N, 4) on the
            first picture's canvas for a segmenter, token ids for a text detector.

    Returns:
        Part -> outputs.
    """
    given = dict(inputs)
    if task == "segmenter":  # its decoder serves one picture per call
        given["image"] = given["image"][:1]
    outputs: dict[str, Arrays] = {}
    for name, session in sessions.items():
        outputs[name] = session.run(chained_inputs(session.part, given))
        given |= outputs[name]
    return outputs


def chained_inputs(part: Part, given: Arrays) -> Arrays:
    """Inputs of a part among the values known so far; of one row where the part takes one.

    Raises:
        TkError: a value that no part before it gave, and that did not come from outside.
    """
    missing = [spec.name for spec in part.inputs if spec.name not in given]
    if missing:
        raise TkError(
            "the parts of the model do not fit together", found="no " + ", ".join(missing)
        )
    return {
        spec.name: given[spec.name][:1] if spec.shape[:1] == (1,) else given[spec.name]
        for spec in part.inputs
    }
