"""How right records are, against COCO ground truth."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tk.benchmarks.equality import Record, boxes_of
from tk.runtime.boxes import Boxes
from tk.runtime.errors import TkError
from tk.runtime.masks import Bits, decode_row_major
from tk.runtime.metrics.detection import average_precision
from tk.runtime.metrics.intervals import bootstrap_mean, wilson
from tk.runtime.metrics.masks import mask_iou
from tk.runtime.metrics.matching import match_boxes
from tk.runtime.records import UNKNOWN

HIT = 0.5
"""Box IoU from which a detection is taken to be an object."""


@dataclass(frozen=True)
class Share:
    """A proportion and its 95 % Wilson interval."""

    count: int
    total: int

    def to_json(self) -> dict[str, Any]:
        """Value (null when there was no trial), counts and interval."""
        low, high = wilson(self.count, self.total)
        value = self.count / self.total if self.total else None
        return {"value": value, "count": self.count, "total": self.total, "interval": [low, high]}

    def __str__(self) -> str:
        if not self.total:
            return "none to judge"
        low, high = wilson(self.count, self.total)
        share = self.count / self.total
        return f"{share:.3f} [{low:.3f}, {high:.3f}] ({self.count} of {self.total})"


@dataclass(frozen=True)
class Quality:
    """Figures of merit over the pictures that have both a record and ground truth.

    Attributes:
        images: those pictures.
        objects: true objects on them.
        detections: found objects.
        ap50: average precision of the boxes by `score_vlm`, whatever the class.
        recall: true objects with a detection at an IoU of 0.5 or more, one to one.
        precision: detections that are such a hit.
        class_accuracy: hits whose final class is right; `unknown` is wrong.
        unknown: detections called unknown.
        mask_iou: mean over hits with a true mask, NaN without one.
        mask_iou_interval: 95 % bootstrap over hits.
    """

    images: int
    objects: int
    detections: int
    ap50: float
    recall: Share
    precision: Share
    class_accuracy: Share
    unknown: Share
    mask_iou: float
    mask_iou_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `results.json`."""
        shares = ("recall", "precision", "class_accuracy", "unknown")
        plain = ("images", "objects", "detections", "ap50", "mask_iou", "mask_iou_interval")
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: getattr(self, name).to_json() for name in shares},
        }

    def lines(self) -> list[str]:
        """Say it in a few lines of text."""
        low, high = self.mask_iou_interval
        return [
            f"ground truth: {self.images} images, {self.objects} objects, "
            f"{self.detections} detections",
            f"AP50 of boxes (any class) {self.ap50:.3f}",
            f"recall {self.recall}",
            f"precision {self.precision}",
            f"mask IoU of hits {self.mask_iou:.3f} [{low:.3f}, {high:.3f}]",
            f"class accuracy of hits {self.class_accuracy}",
            f"called unknown {self.unknown}",
        ]


@dataclass(frozen=True)
class Truth:
    """Ground truth of one picture.

    Attributes:
        boxes: (M, 4) float32 xyxy, pixels.
        classes: M names, NFC.
        masks: M masks (H, W) bool; None where only the box is known.
    """

    boxes: Boxes
    classes: tuple[str, ...]
    masks: tuple[Bits | None, ...]


def judge(records: Sequence[Record], annotations: Path) -> Quality:
    """Compare records with a COCO file.

    Args:
        records: of `predictions.json`.
        annotations: COCO JSON; `file_name` is relative to the folder that was annotated.

    Raises:
        TkError: not a COCO file, or it is of other pictures.
    """
    from tk.train.scenes.coco import Scene, mask_of, read_scenes

    scenes = read_scenes(annotations)
    by_name: dict[str, Scene] = {_name(scene.path, annotations): scene for scene in scenes.scenes}
    known = [record for record in records if _nfc(record["image"]) in by_name]
    if not known:
        raise TkError(
            f"{annotations.name} is of other pictures than those annotated",
            expected=", ".join(sorted(by_name)[:3]) + ", …",
            found=", ".join(record["image"] for record in records[:3]) or "no picture",
        )

    def truth(record: Record) -> Truth:
        scene = by_name[_nfc(record["image"])]
        things = scene.things
        boxes = np.asarray([thing.box for thing in things], np.float32).reshape(-1, 4)
        classes = tuple(_nfc(scenes.classes[thing.label]) for thing in things)
        masks = tuple(mask_of(thing, scene.height, scene.width) for thing in things)
        return Truth(boxes, classes, masks)

    # Masks of one picture at a time: a thousand full-size masks do not fit in memory.
    return _sum_up([_judge_picture(record["detections"], truth(record)) for record in known])


@dataclass(frozen=True)
class _Judged:
    """One picture: its boxes and scores, true boxes, and what its hits are worth."""

    boxes: Boxes
    scores: Any
    truth: Boxes
    hits: int
    right: int
    unknown: int
    mask_ious: list[float]


def _judge_picture(detections: Sequence[Record], truth: Truth) -> _Judged:
    boxes = boxes_of(detections)
    matches, _ = match_boxes(boxes, truth.boxes, HIT)
    right, ious = 0, []
    for row, column in matches.tolist():
        right += _nfc(detections[row]["class"]) == truth.classes[column]
        mask, rle = truth.masks[column], detections[row].get("mask_rle")
        if mask is not None and rle is not None:
            ious.append(mask_iou(mask, decode_row_major(rle["size"], rle["counts"])))
    # A score that is not a number ranks last.
    scores = [0.0 if one["score_vlm"] is None else one["score_vlm"] for one in detections]
    unknown = sum(one["class"] == UNKNOWN for one in detections)
    scored = np.asarray(scores, np.float32)
    return _Judged(boxes, scored, truth.boxes, len(matches), right, unknown, ious)


def _sum_up(pictures: Sequence[_Judged]) -> Quality:
    objects = sum(len(picture.truth) for picture in pictures)
    detections = sum(len(picture.boxes) for picture in pictures)
    hits = sum(picture.hits for picture in pictures)
    ious = np.asarray([iou for picture in pictures for iou in picture.mask_ious], np.float64)
    nothing = float("nan")
    return Quality(
        images=len(pictures),
        objects=objects,
        detections=detections,
        ap50=average_precision(
            [(picture.boxes, picture.scores) for picture in pictures],
            [picture.truth for picture in pictures],
            HIT,
        ),
        recall=Share(hits, objects),
        precision=Share(hits, detections),
        class_accuracy=Share(sum(picture.right for picture in pictures), hits),
        unknown=Share(sum(picture.unknown for picture in pictures), detections),
        mask_iou=float(ious.mean()) if len(ious) else nothing,
        mask_iou_interval=bootstrap_mean(ious) if len(ious) else (nothing, nothing),
    )


def _name(path: Path, annotations: Path) -> str:
    """Name of a picture as records spell it: relative to the folder of the images, POSIX, NFC."""
    file = annotations / "annotations.json" if annotations.is_dir() else annotations
    images = file.parent / "images"
    folder = images if path.is_relative_to(images) else file.parent
    return _nfc(path.relative_to(folder).as_posix())


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
