"""The same boxes in every picture: for models with random weights, which find nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tk.runtime.backends.base import Session
from tk.runtime.heads.detector import Detector, Proposals
from tk.runtime.preprocess import Image

SMALLEST, LARGEST = 0.12, 0.4
"""Sides of the boxes, as shares of the picture's sides."""


class FixedBoxes:
    """A detector that runs, and then gives the same boxes in every picture.

    Args:
        detector: whose sessions run.
        count: boxes per picture.
    """

    def __init__(self, detector: Detector, count: int) -> None:
        self.detector, self.count = detector, count

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those of the detector."""
        return self.detector.sessions

    def detect(self, images: Sequence[Image]) -> list[Proposals]:
        """Run the detector on pictures (H, W, 3) uint8 RGB and give the boxes."""
        self.detector.detect(images)
        return [fixed_boxes(self.count, *image.shape[:2]) for image in images]


def fixed_boxes(count: int, height: int, width: int) -> Proposals:
    """Boxes of many sizes all over a picture, best first.

    Args:
        count: how many.
        height, width: of the picture, pixels.
    """
    random = np.random.default_rng(count)
    sides = random.uniform(SMALLEST, LARGEST, (count, 2))
    low = random.uniform(0, 1 - sides)
    shares = np.concatenate([low, low + sides], axis=1)
    boxes = (shares * [width, height, width, height]).astype(np.float32)
    scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
    return Proposals(boxes, scores, ("object",) * count)
