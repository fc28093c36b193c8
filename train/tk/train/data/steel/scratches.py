"""Class 3: bundles of abrasion streaks, mostly bright, mostly along the strip."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT
from tk.train.data.steel.pen import Points, around, stroke
from tk.train.data.steel.plate import SHAPE, Field, Plate
from tk.train.data.synth.backgrounds import noise


def scratches(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    """Draw one or two bundles into `gain`.

    Returns:
        (H, W) bool, the outline of each.
    """
    mask = np.zeros(SHAPE, bool)
    for _ in range(int(rng.choice([1, 2], p=[0.75, 0.25]))):
        mask |= _bundle(rng, plate, gain)
    return mask


def _bundle(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    marks = np.zeros(SHAPE, np.uint8)
    x, y = rng.uniform(plate.left + 40, plate.right - 40), rng.uniform(30, HEIGHT - 30)
    angle = rng.normal(0, 0.25) if rng.random() < 0.85 else rng.uniform(-1.5, 1.5)
    breadth, length = rng.uniform(8, 150), rng.uniform(60, 300)
    count = int(rng.integers(3, 6 + int(breadth / 4)))
    broadest = rng.uniform(1.5, 5)
    for _ in range(count):
        offset = rng.uniform(-0.5, 0.5) * breadth
        shift = rng.normal(0, 0.15) * length
        points = _streak(rng, length * rng.uniform(0.35, 1), angle + rng.normal(0, 0.03))
        points += (x + np.cos(angle) * offset, y + shift - np.sin(angle) * offset)
        _scrape(marks, points, rng.uniform(0.8, broadest), rng.uniform(0.4, 1))
    marks[:, : plate.left] = 0
    marks[:, plate.right :] = 0
    _rub(rng, marks, gain)
    return around(marks > 50, 5)


def _scrape(marks: NDArray[np.uint8], points: Points, width: float, strength: float) -> None:
    """Draw a streak that tapers to both ends: three strokes, each shorter and wider."""
    for cut, share in ((0, 0.4), (1, 0.7), (2, 1.0)):
        drawn = stroke(points[cut : len(points) - cut], max(0.8, width * share))
        if drawn is not None:
            cover, where = drawn
            faded = cv2.convertScaleAbs(cover, alpha=strength * (0.55 + 0.45 * share))
            marks[where] = cv2.max(marks[where], faded)


def _streak(rng: np.random.Generator, length: float, angle: float) -> Points:
    """(P, 2) corners of a slightly bent line about (0, 0), down the strip for angle 0."""
    along = np.linspace(-0.5, 0.5, 9)
    bow = rng.normal(0, 0.015) * length * (1 - 4 * along**2)
    turn = np.array([[np.sin(angle), np.cos(angle)], [np.cos(angle), -np.sin(angle)]])
    turned: Points = np.stack([along * length, bow], axis=1) @ turn
    return turned


def _rub(rng: np.random.Generator, marks: NDArray[np.uint8], gain: Field) -> None:
    """Streaks of uneven strength and a haze between them; a few bundles are dark."""
    share = marks.astype(np.float32) / 255
    uneven = np.clip(0.75 + 0.6 * noise(rng, SHAPE, (14, 90)), 0.1, 1.4)
    strength = rng.uniform(0.2, 0.75) if rng.random() < 0.75 else rng.uniform(-0.5, -0.2)
    haze = cv2.GaussianBlur(share, (0, 0), 5) * np.float32(rng.uniform(0, 0.25))
    gain *= 1 + np.float32(strength) * (share * uneven + haze)
