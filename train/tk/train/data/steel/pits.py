"""Class 1: clusters of small dark specks, some with a bright rim."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT
from tk.train.data.steel.pen import around
from tk.train.data.steel.plate import SHAPE, Field, Plate


def pits(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    """Draw one to three clusters into `gain`.

    Returns:
        (H, W) bool, the outline of each.
    """
    mask = np.zeros(SHAPE, bool)
    for _ in range(int(rng.integers(1, 4))):
        mask |= _cluster(rng, plate, gain)
    return mask


def _cluster(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    x, y = rng.uniform(plate.left + 20, plate.right - 20), rng.uniform(10, HEIGHT - 10)
    spread = (rng.uniform(4, 28), rng.uniform(8, 60))  # the rolls draw a cluster out
    specks = np.zeros(SHAPE, np.float32)
    rims = np.zeros(SHAPE, np.float32)
    rimmed = rng.random() < 0.4
    largest = rng.uniform(1.0, 3.4)
    for _ in range(int(rng.integers(4, 36))):
        at = (round(x + rng.normal(0, spread[0])), round(y + rng.normal(0, spread[1])))
        radius = rng.uniform(0.8, largest)
        axes = (max(1, round(radius)), max(1, round(radius * rng.uniform(1, 2))))
        depth = float(rng.uniform(0.45, 1))
        if rimmed:
            cv2.ellipse(rims, (at[0] + 1, at[1] + 1), axes, 0, 0, 360, depth, cv2.FILLED)
        cv2.ellipse(specks, at, axes, 0, 0, 360, depth, cv2.FILLED)
    soft = cv2.GaussianBlur(specks, (5, 5), 0.7)
    bright = cv2.GaussianBlur(np.where(specks > 0, 0, rims), (5, 5), 0.7)
    gain *= (1 - np.float32(rng.uniform(0.4, 0.75)) * soft) * (1 + np.float32(0.5) * bright)
    return around(specks > 0, 9)
