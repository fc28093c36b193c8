"""What rounding does to detections: which objects are still found, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import Boxes, nms
from tk.runtime.metrics.matching import match_boxes

Scores = NDArray[np.float32]

SCORE = 0.25
"""What counts as found: the threshold of the annotator's defaults."""

NMS_IOU = 0.5
MATCH_IOU = 0.5


@dataclass(frozen=True)
class DetectionsKept:
    """How the detections of two runs agree on one picture; may be added up.

    Attributes:
        found: boxes above the threshold, of both runs together.
        missed: those of them without a partner in the other run.
        overlap: sum of IoU over the pairs.
        difference: sum of the absolute difference of scores over the pairs: of the class that is
            best in the reference.
        pairs: how many.
    """

    found: int = 0
    missed: int = 0
    overlap: float = 0.0
    difference: float = 0.0
    pairs: int = 0

    def __add__(self, other: DetectionsKept) -> DetectionsKept:
        return DetectionsKept(
            self.found + other.found,
            self.missed + other.missed,
            self.overlap + other.overlap,
            self.difference + other.difference,
            self.pairs + other.pairs,
        )

    @property
    def kept(self) -> float:
        """Share of the boxes of either run that the other one has too (an F1 score)."""
        return 1 - self.missed / self.found if self.found else 1.0

    @property
    def mean_overlap(self) -> float:
        """IoU of a pair."""
        return self.overlap / self.pairs if self.pairs else 1.0

    @property
    def mean_difference(self) -> float:
        """Difference of the scores of a pair."""
        return self.difference / self.pairs if self.pairs else 0.0


def detections_kept(
    reference: tuple[Boxes, Scores], found: tuple[Boxes, Scores], tolerance: float
) -> DetectionsKept:
    """Compare what two runs find in one picture, after non-maximum suppression.

    A box counts when its best score reaches `SCORE`. Its partner may lie lower by `tolerance`: a
    score near the threshold may end on either side of it, and means no object more or less. A
    partner has the same best class, or one that is as good within `tolerance`.

    Args:
        reference, found: boxes (N, 4) float32 xyxy, and scores (N, C) float32 of classes or tokens,
            0..1.
        tolerance: difference of scores that is no difference.
    """
    ours, theirs = (_chosen(*side, SCORE - tolerance) for side in (reference, found))
    pairs, overlap = match_boxes(ours[0], theirs[0], MATCH_IOU)
    one, other = ours[1][pairs[:, 0]], theirs[1][pairs[:, 1]]
    place = np.arange(len(pairs))
    best, best_other = one.argmax(axis=1), other.argmax(axis=1)
    alike = one[place, best] - one[place, best_other] <= tolerance
    pairs, overlap = pairs[alike], overlap[alike]
    apart = np.abs(one[place, best] - other[place, best])[alike]
    sure = [scores.max(axis=1) >= SCORE for _, scores in (ours, theirs)]
    paired = [np.isin(np.arange(len(s)), pairs[:, side]) for side, s in enumerate(sure)]
    # a pair below the threshold on both sides is nothing that anybody sees
    seen = sure[0][pairs[:, 0]] | sure[1][pairs[:, 1]]
    return DetectionsKept(
        found=int(sum(s.sum() for s in sure)),
        missed=int(sum((s & ~p).sum() for s, p in zip(sure, paired, strict=True))),
        overlap=float(overlap[seen].sum()),
        difference=float(apart[seen].sum()),
        pairs=int(seen.sum()),
    )


def _chosen(boxes: Boxes, scores: Scores, least: float) -> tuple[Boxes, Scores]:
    best = scores.max(axis=1)
    keep = np.flatnonzero(best >= least)
    keep = keep[nms(boxes[keep], best[keep], NMS_IOU)]
    return boxes[keep], scores[keep]
