"""Class 2: fine hairlines down the strip, a pixel or two wide, with gaps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT
from tk.train.data.steel.pen import Points, add_line, stroke
from tk.train.data.steel.plate import SHAPE, Field, Plate

_STEP = 5.0
"""Pixels between two corners of a hairline."""
_OUTLINE = 15
"""Width of the outline round a hairline, pixels."""


def cracks(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    """Draw one to three hairlines close together into `gain`.

    Returns:
        (H, W) bool, the outline of each.
    """
    mask = np.zeros(SHAPE, np.uint8)
    x = rng.uniform(plate.left + 30, plate.right - 30)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
        points = _hairline(rng, x)
        _draw(rng, points, gain)
        drawn = stroke(points, _OUTLINE)
        if drawn is not None:
            cover, where = drawn
            mask[where] = cv2.max(mask[where], cover)
        x = float(np.clip(x + rng.normal(0, 40), plate.left + 10, plate.right - 10))
    return mask > 127


def _hairline(rng: np.random.Generator, x: float) -> Points:
    """(P, 2) corners of a line that wanders a little while it goes down."""
    length = rng.uniform(45, 210)
    top = rng.uniform(-10, HEIGHT - 0.7 * length)
    rows = np.arange(top, top + length, _STEP)
    wander = np.cumsum(rng.normal(0, 0.7, len(rows))) + rng.normal(0, 0.05) * (rows - top)
    return np.stack([x + wander, rows], axis=1)


def _draw(rng: np.random.Generator, points: Points, gain: Field) -> None:
    width, depth = rng.uniform(0.7, 2.2), rng.uniform(0.3, 0.65)
    lip = rng.uniform(0, 0.3)  # the far lip of a crack shines
    solid = rng.random() < 0.6
    for start in range(0, len(points) - 1, 4):
        part = points[start : start + 5]
        if solid or rng.random() < 0.75:
            add_line(gain, part + np.array([1.5, 0]), 1.0, lip)
            add_line(gain, part, width, -depth * rng.uniform(0.6, 1))
