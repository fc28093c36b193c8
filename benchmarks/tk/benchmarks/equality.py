"""How equal two sets of records are: the same objects, masks and classes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tk.runtime.boxes import Boxes
from tk.runtime.errors import TkError
from tk.runtime.masks import decode_row_major
from tk.runtime.metrics.masks import mask_iou
from tk.runtime.metrics.matching import match_boxes

LEAST_MATCHED = 0.99
LEAST_CLASS_AGREEMENT = 0.99
LEAST_MASK_IOU = 0.99
"""Shares and the mean mask IoU from which two chains count as finding the same."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Equality:
    """Two chains compared on the same pictures; figures are NaN when nothing was matched.

    Attributes:
        images: pictures compared.
        reference, candidate: number of detections of each.
        matched: pairs of boxes with an IoU of 0.5 or more, one to one.
        matched_share: matched pairs among all distinct objects (reference + candidate - matched).
        mean_box_iou, min_box_iou: over matched pairs.
        mean_mask_iou, min_mask_iou: over matched pairs.
        class_agreement: share of matched pairs with the same class.
        max_score_difference: largest difference of similarity over matched pairs.
        errors_differ: pictures that only one of the two could not read.
    """

    images: int
    reference: int
    candidate: int
    matched: int
    matched_share: float
    mean_box_iou: float
    min_box_iou: float
    mean_mask_iou: float
    min_mask_iou: float
    class_agreement: float
    max_score_difference: float
    errors_differ: int

    @property
    def problems(self) -> list[str]:
        """One sentence per figure that says the chains do not find the same."""
        if not self.reference and not self.candidate:
            return ["neither chain found an object: nothing was compared"]
        found = [f"{self.errors_differ} pictures could be read by one chain only"]
        found = found if self.errors_differ else []
        for text, value, least in (
            ("share of matched objects", self.matched_share, LEAST_MATCHED),
            ("class agreement", self.class_agreement, LEAST_CLASS_AGREEMENT),
            ("mean mask IoU", self.mean_mask_iou, LEAST_MASK_IOU),
        ):
            if not value >= least:  # NaN is a problem too
                found.append(f"{text} {value:.4f}, needs {least}")
        return found


def compare_records(reference: Sequence[Record], candidate: Sequence[Record]) -> Equality:
    """Match the detections of two runs picture by picture.

    Args:
        reference: records of `predictions.json`, with masks.
        candidate: of the same pictures.

    Raises:
        TkError: they are not of the same pictures, or a detection has no mask.
    """
    by_name = {record["image"]: record for record in candidate}
    names = [record["image"] for record in reference]
    if sorted(names) != sorted(by_name) or len(by_name) != len(candidate):
        raise TkError(
            "two runs cannot be compared: they are not of the same pictures",
            expected=f"{len(names)} pictures of the reference",
            found=f"{len(candidate)} pictures, {len(set(names) & set(by_name))} of them the same",
        )
    total, errors = 0, 0
    pairs: list[tuple[float, float, float, float]] = []
    for record in reference:
        other = by_name[record["image"]]
        errors += ("error" in record) != ("error" in other)
        total += len(other["detections"])
        pairs += _pairs(record["detections"], other["detections"])
    own = sum(len(record["detections"]) for record in reference)
    union = own + total - len(pairs)
    box, mask, same, score = np.asarray(pairs or [(np.nan,) * 4], np.float64).T
    return Equality(
        images=len(names),
        reference=own,
        candidate=total,
        matched=len(pairs),
        matched_share=len(pairs) / union if union else float("nan"),
        mean_box_iou=float(box.mean()),
        min_box_iou=float(box.min()),
        mean_mask_iou=float(mask.mean()),
        min_mask_iou=float(mask.min()),
        class_agreement=float(same.mean()),
        max_score_difference=float(score.max()),
        errors_differ=errors,
    )


def _pairs(
    reference: Sequence[Record], candidate: Sequence[Record]
) -> list[tuple[float, float, float, float]]:
    """Box IoU, mask IoU, 1 for the same class, difference of similarity: per matched pair."""
    matches, overlaps = match_boxes(boxes_of(candidate), boxes_of(reference))
    found = []
    for (row, column), overlap in zip(matches.tolist(), overlaps.tolist(), strict=True):
        a, b = reference[column], candidate[row]
        iou = mask_iou(_mask(a), _mask(b))
        scores = (a["score_metric"], b["score_metric"])
        difference = 0.0 if None in scores else abs(scores[0] - scores[1])
        found.append((overlap, iou, float(a["class"] == b["class"]), difference))
    return found


def boxes_of(detections: Sequence[Record]) -> Boxes:
    """Boxes of the detections of one record: (N, 4) float32 xyxy, pixels."""
    return np.asarray([one["bbox_xyxy"] for one in detections], np.float32).reshape(-1, 4)


def _mask(detection: Record) -> Any:
    rle = detection.get("mask_rle")
    if rle is None:
        raise TkError("a detection has no mask to compare", fix="run with masks")
    return decode_row_major(rle["size"], rle["counts"])
