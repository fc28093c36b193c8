"""Class 4: large patches of rolled-in scale, flaky inside, with a ragged dark edge."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT
from tk.train.data.steel.pen import around, blob
from tk.train.data.steel.plate import SHAPE, Field, Plate
from tk.train.data.synth.backgrounds import noise


def scale(rng: np.random.Generator, plate: Plate, gain: Field) -> NDArray[np.bool_]:
    """Draw one or two patches into `gain`.

    Returns:
        (H, W) bool, the outline of each.
    """
    mask = np.zeros(SHAPE, bool)
    for _ in range(int(rng.choice([1, 2], p=[0.8, 0.2]))):
        centre = rng.uniform(plate.left + 60, plate.right - 60), rng.uniform(40, HEIGHT - 40)
        size = rng.uniform(70, 340), rng.uniform(60, 230)
        shape = _largest(blob(rng, centre, size, cells=(16, 60)))
        shape[:, : plate.left] = 0
        shape[:, plate.right :] = 0
        # The edge is sharp in some places and fades in others.
        faded = cv2.GaussianBlur(shape, (0, 0), rng.uniform(0.8, 6))
        gain *= 1 + np.minimum(shape, faded) * _flakes(rng)
        rim = np.abs(shape - cv2.GaussianBlur(shape, (0, 0), 2.0))
        gain *= 1 - np.float32(rng.uniform(0, 0.5)) * rim
        mask |= around(shape > 0, 3)
    return mask


def _largest(shape: Field) -> Field:
    """The largest connected part: a splinter alone would be taken for a pit."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(shape.astype(np.uint8))
    if len(stats) == 1:
        return shape
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return np.asarray(labels == largest, np.float32)


def _flakes(rng: np.random.Generator) -> Field:
    """(H, W) float32: layers that came off in steps, on a lighter or darker ground."""
    coarse = noise(rng, SHAPE, (14, 60))
    fine = noise(rng, SHAPE, (90, 400), smooth=False)
    drawn_out = noise(rng, SHAPE, (12, 400))  # the rolls have passed over it
    height = coarse + np.float32(0.5) * fine + np.float32(0.4) * drawn_out
    steps = np.tanh((height - np.float32(rng.uniform(-0.3, 0.4))) * np.float32(rng.uniform(2, 7)))
    ground = np.float32(rng.uniform(-0.14, 0.12))
    depth = np.float32(rng.uniform(0.07, 0.24))
    return np.asarray(ground + depth * (steps + 0.6 * fine + 0.4 * drawn_out), np.float32)
