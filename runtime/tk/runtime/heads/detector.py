"""Detector: pictures in, proposals out. What lies behind is the bundle's matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Session
from tk.runtime.boxes import area, clip, nms, valid
from tk.runtime.bundle import Bundle
from tk.runtime.preprocess import Image, Placement, fit


@dataclass(frozen=True)
class Proposals:
    """Boxes of one picture, best first.

    Attributes:
        boxes: (N, 4) float32 xyxy, pixels of the picture, inside it.
        scores: (N,) float32, 0..1.
        words: (N,) what the detector calls it; never a class name of the gallery.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class DetectorOptions:
    """Run-time thresholds.

    Attributes:
        box_threshold: proposals below it are dropped.
        nms_iou: of two boxes that overlap more, the weaker one is dropped; 1 keeps all.
        nms_by: what makes a box the weaker one, its `score` or its `area`.
        most: at most so many proposals per picture.
    """

    box_threshold: float = 0.25
    nms_iou: float = 0.5
    most: int = 100
    nms_by: Literal["score", "area"] = "score"

    def choose(self, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Rows that remain of boxes above the threshold, best score first.

        Args:
            boxes: (N, 4) float32 xyxy, pixels, with an area.
            scores: (N,) float32, 0..1.
        """
        keep = nms(boxes, area(boxes) if self.nms_by == "area" else scores, self.nms_iou)
        return keep[np.argsort(-scores[keep], kind="stable")][: self.most]


class Detector(Protocol):
    """Anything that finds boxes in pictures."""

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that was opened."""

    def detect(self, images: Sequence[Image]) -> list[Proposals]:
        """Find objects: one `Proposals` per picture (H, W, 3) uint8 RGB, in order."""


class CompactDetector:
    """A detector whose classes are an axis of its scores.

    Args:
        bundle: of task `detector`.
        options: thresholds.
        session_options: passed to `Bundle.session` (device, precision, backend, threads).
    """

    def __init__(
        self, bundle: Bundle, options: DetectorOptions | None = None, **session_options: Any
    ) -> None:
        self.manifest = bundle.manifest
        self.options = options or DetectorOptions()
        self.session: Session = bundle.session("model", **session_options)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that was opened."""
        return (self.session,)

    def detect(self, images: Sequence[Image]) -> list[Proposals]:
        """Find objects.

        Args:
            images: each (H, W, 3) uint8 RGB, any sizes.

        Returns:
            One `Proposals` per picture, in order.
        """
        found: list[Proposals] = []
        size = self.manifest.parts["model"].max_batch
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            fitted = [fit(self.manifest.image, image) for image in chunk]
            outputs = self.session.run({"image": np.stack([canvas for canvas, _ in fitted])})
            for row, (image, (_, placement)) in enumerate(zip(chunk, fitted, strict=True)):
                boxes = np.asarray(outputs["boxes"][row], np.float32)
                scores = np.asarray(outputs["scores"][row], np.float32)
                found.append(self._proposals(boxes, scores, placement, image))
        return found

    def _proposals(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        placement: Placement,
        image: Image,
    ) -> Proposals:
        height, width = image.shape[:2]
        best = scores.argmax(axis=1)
        score = scores[np.arange(len(scores)), best]
        boxes = clip(placement.to_image(boxes), width, height)
        keep = np.flatnonzero((score >= self.options.box_threshold) & valid(boxes))
        keep = keep[self.options.choose(boxes[keep], score[keep])]
        words = tuple(self.manifest.classes[index] for index in best[keep])
        return Proposals(boxes[keep], score[keep], words)
