"""A strip of rolled steel without a defect, as a line camera sees it.

The long side lies across the strip, so what the rolls leave behind runs down the short side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT, WIDTH
from tk.train.data.synth.backgrounds import grain, noise

Field = NDArray[np.float32]
SHAPE = (HEIGHT, WIDTH)
_LEAST_LIT = 500
"""Columns that the strip fills at least; the camera may look past its edge."""


@dataclass(frozen=True, eq=False)
class Plate:
    """A strip before its defects.

    Attributes:
        levels: (H, W) float32, grey levels, about 0..255.
        left: first column that the strip fills.
        right: one behind the last.
    """

    levels: Field
    left: int
    right: int


def roll_plate(rng: np.random.Generator) -> Plate:
    """Draw the surface: bands across the strip, fine rolling texture along it, dark ends."""
    level = rng.uniform(62, 142)
    levels = np.full(SHAPE, level, np.float32)
    for cells, strength in ((3, 0.16), (11, 0.07), (60, 0.035), (420, 0.025)):
        band = noise(rng, (1, WIDTH), (2, cells))
        levels *= 1 + np.float32(strength * rng.uniform(0.3, 1.2)) * band
    roughness = rng.uniform(0.4, 1.3)
    levels += np.float32(4.0 * roughness) * noise(rng, SHAPE, (9, WIDTH), smooth=False)
    levels += np.float32(3.0 * roughness) * noise(rng, SHAPE, (50, 700), smooth=False)
    levels += np.float32(level * rng.uniform(0.02, 0.08)) * noise(rng, SHAPE, (4, 26))
    levels += np.float32(5.0 * roughness) * grain(rng, SHAPE)
    left, right = _ends(rng)
    return Plate(_darken(rng, levels, left, right), left, right)


def _ends(rng: np.random.Generator) -> tuple[int, int]:
    """Where the strip begins and ends; three of four fill the picture."""
    if rng.random() < 0.75:
        return 0, WIDTH
    missing = int(rng.uniform(30, WIDTH - _LEAST_LIT))
    return (missing, WIDTH) if rng.random() < 0.5 else (0, WIDTH - missing)


def _darken(rng: np.random.Generator, levels: Field, left: int, right: int) -> Field:
    """Black beside the strip, with an edge that leans and is bright where it is cut."""
    if (left, right) == (0, WIDTH):
        return levels
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    lean = np.float32(rng.uniform(-0.05, 0.05)) * (rows - HEIGHT / 2)
    rough = np.float32(rng.uniform(0.5, 3)) * noise(rng, (HEIGHT, 1), (40, 2))
    columns = np.arange(WIDTH, dtype=np.float32)[None]
    edge = (left if left else right) + lean + rough
    inside = columns - edge if left else edge - columns
    soft = np.clip(inside / np.float32(rng.uniform(2, 14)), 0, 1)
    glint = np.float32(rng.uniform(0, 0.5)) * np.exp(-((inside - 6) ** 2) / 18)
    dark = np.float32(rng.uniform(2, 9))
    return np.asarray(dark + (levels * (1 + glint) - dark) * soft, np.float32)


def photograph(rng: np.random.Generator, levels: Field) -> bytes:
    """Slope of the light, softness of the lens, noise of the sensor, JPEG.

    Args:
        levels: (H, W) float32, grey levels.

    Returns:
        a JPEG file of three equal channels.
    """
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]
    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    light = 1 + np.float32(rng.uniform(-0.18, 0.18)) * x + np.float32(rng.uniform(-0.06, 0.06)) * y
    light -= np.float32(rng.uniform(0, 0.22)) * x * x
    blurred = cv2.GaussianBlur(levels * light, (5, 5), rng.uniform(0.3, 0.9))
    seen = np.asarray(blurred, np.float32) + np.float32(rng.uniform(1.5, 6)) * grain(rng, SHAPE)
    grey = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 97))]
    _, data = cv2.imencode(".jpg", cv2.merge([grey, grey, grey]), quality)
    return data.tobytes()
