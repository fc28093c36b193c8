"""How equal two runs of a model are over a set of pictures, where single rows say too little.

Of embeddings: whether the pictures keep their nearest neighbours. Of detections: whether the same
objects are found. Of masks: how they overlap on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tk.runtime.metrics.detections_kept import DetectionsKept, detections_kept
from tk.runtime.metrics.neighbours import neighbours_kept
from tk.runtime.parity.limits import THRESHOLDS, Measure
from tk.runtime.parity.rows import mask_overlaps

FEWEST_NEIGHBOURS = 3
"""Images from which on a nearest other one says something."""

CHANCE = ((10, 2), (4, 1))
"""Of so many boxes and more, so many without a partner say nothing: an object that moved leaves one
on either side."""

MEAN = "mean_"
"""Begins the name of a metric whose worst row is a metric too."""


class OverAll(Protocol):
    """Gathers answers to different pictures, call by call."""

    def add(self, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
        """Take the outputs of the reference and of the candidate for more pictures."""

    def measures(self) -> list[Measure]:
        """Figures over all that was added; none where it is too little."""


def over_all(task: str, part: str, precision: str) -> OverAll | None:
    """What gathers the figures of a part; None for one that has none."""
    if task == "embedder":
        return _Neighbours(precision)
    if (task, part) == ("detector", "model"):
        return _Detections(precision)
    if (task, part) == ("segmenter", "decoder"):
        return _Masks(precision)
    return None


def relieve(rows: list[Measure], overall: list[Measure]) -> list[Measure]:
    """Figures of rows; those whose mean over all images decides are recorded only."""
    decided = {measure.metric for measure in overall if measure.threshold is not None}
    return [replace(row, threshold=None) if MEAN + row.metric in decided else row for row in rows]


class _Neighbours:
    """Of embeddings."""

    def __init__(self, precision: str) -> None:
        self._limits = THRESHOLDS[precision]
        self._rows: dict[str, tuple[list[NDArray[Any]], list[NDArray[Any]]]] = {}

    def add(self, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
        """See `OverAll`."""
        for output, rows in expected.items():
            ours, theirs = self._rows.setdefault(output, ([], []))
            ours.append(rows)
            theirs.append(found[output])

    def measures(self) -> list[Measure]:
        """See `OverAll`."""
        measures: list[Measure] = []
        for output, (ours, theirs) in self._rows.items():
            expected, found = np.concatenate(ours), np.concatenate(theirs)
            if len(expected) < FEWEST_NEIGHBOURS:
                continue
            figures = neighbours_kept(expected, found)
            for metric, value in (
                ("neighbours_kept", figures.kept),
                ("same_neighbour", figures.same),
            ):
                measures.append(Measure(output, metric, value, self._limits.get(metric)))
        return measures


class _Detections:
    """Of boxes and the scores of classes or tokens."""

    def __init__(self, precision: str) -> None:
        self._limits = THRESHOLDS[precision]
        self._sum = DetectionsKept()
        self._finite = True
        self._scores = "scores"

    def add(self, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
        """See `OverAll`."""
        self._scores = "token_scores" if "token_scores" in expected else "scores"
        for row in range(len(expected["boxes"])):
            ours, theirs = (
                (
                    np.asarray(side["boxes"][row], np.float32),
                    np.asarray(side[self._scores][row], np.float32),
                )
                for side in (expected, found)
            )
            self._finite &= all(np.isfinite(array).all() for array in (*ours, *theirs))
            if self._finite:
                tolerance = self._limits["score_difference"]
                self._sum += detections_kept(ours, theirs, tolerance)

    def measures(self) -> list[Measure]:
        """See `OverAll`; without one detection there is nothing to say."""
        total = self._sum
        if self._finite and not total.found:
            return []
        figures = {
            "detections_kept": total.kept,
            "mean_box_iou": total.mean_overlap,
            "mean_score_difference": total.mean_difference,
        }
        limits = {metric: self._limits.get(metric) for metric in figures}
        if (least := limits["detections_kept"]) is not None and total.found:
            chance = next((lost for boxes, lost in CHANCE if total.found >= boxes), 0)
            limits["detections_kept"] = min(least, 1 - chance / total.found)
        return [
            Measure(
                self._scores if "score" in metric else "boxes",
                metric,
                value if self._finite else float("nan"),
                limits[metric],
            )
            for metric, value in figures.items()
        ]


class _Masks:
    """Of the masks of boxes."""

    def __init__(self, precision: str) -> None:
        self._limit = THRESHOLDS[precision].get("mean_mask_iou")
        self._overlaps: list[NDArray[np.float64]] = []

    def add(self, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
        """See `OverAll`."""
        self._overlaps.append(mask_overlaps(expected["logits"], found["logits"]))

    def measures(self) -> list[Measure]:
        """See `OverAll`."""
        overlaps = np.concatenate(self._overlaps) if self._overlaps else np.zeros(0)
        if not len(overlaps):
            return []
        return [Measure("logits", "mean_mask_iou", float(overlaps.mean()), self._limit)]
