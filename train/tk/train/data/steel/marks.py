"""What lies on a strip and is no defect: oil, water, dust, marks of the rolls."""

from __future__ import annotations

import cv2
import numpy as np

from tk.train.data.steel.layout import HEIGHT, WIDTH
from tk.train.data.steel.pen import add_line, blob
from tk.train.data.steel.plate import SHAPE, Field, Plate
from tk.train.data.synth.backgrounds import noise


def oil(rng: np.random.Generator, plate: Plate, gain: Field) -> None:
    """A smooth stain without a texture of its own, sometimes running down."""
    width, height = rng.uniform(50, 320), rng.uniform(30, 200)
    x, y = rng.uniform(plate.left, plate.right), rng.uniform(0, HEIGHT)
    shape = blob(rng, (x, y), (width, height), cells=(5, 12))
    if rng.random() < 0.3:
        shape = np.asarray(cv2.blur(shape, (1, 2 * int(rng.uniform(20, 60)) + 1)), np.float32)
    soft = cv2.GaussianBlur(shape, (0, 0), rng.uniform(3, 10))
    gain *= 1 - np.float32(rng.uniform(0.08, 0.3)) * soft


def water(rng: np.random.Generator, plate: Plate, gain: Field) -> None:
    """Dried drops: faint rings, now and then a trail of them."""
    x, y = rng.uniform(plate.left, plate.right), rng.uniform(0, HEIGHT)
    spread = rng.uniform(10, 120)
    for _ in range(int(rng.integers(1, 9))):
        ring = np.zeros(SHAPE, np.float32)
        radius = rng.uniform(5, 34)
        centre = (round(x + rng.normal(0, spread)), round(y + rng.normal(0, spread / 2)))
        axes = (round(radius), max(2, round(radius * rng.uniform(0.6, 1.1))))
        cv2.ellipse(ring, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, int(rng.integers(1, 4)))
        if rng.random() < 0.5:
            cv2.ellipse(ring, centre, axes, 0, 0, 360, float(rng.uniform(0.1, 0.4)), cv2.FILLED)
        soft = cv2.GaussianBlur(ring, (5, 5), rng.uniform(0.8, 1.8))
        gain *= 1 + np.float32(rng.choice([-1, 1]) * rng.uniform(0.06, 0.2)) * soft


def roll_lines(rng: np.random.Generator, plate: Plate, gain: Field) -> None:
    """Faint straight lines over the whole strip, as the rolls leave them."""
    x, lean = rng.uniform(plate.left, plate.right), rng.uniform(-3, 3)
    strength = rng.choice([-1, 1]) * rng.uniform(0.04, 0.13)
    for _ in range(int(rng.integers(1, 5))):
        ends = np.array([[x, -2], [x + lean, HEIGHT + 2]])
        add_line(gain, ends, rng.uniform(1, 4), strength * rng.uniform(0.5, 1))
        x += rng.uniform(8, 90)


def dust(rng: np.random.Generator, plate: Plate, gain: Field) -> None:
    """Single grains, far apart."""
    for _ in range(int(rng.integers(1, 5))):
        at = (int(rng.uniform(plate.left, plate.right)), int(rng.uniform(0, HEIGHT)))
        cv2.circle(gain, at, int(rng.integers(1, 3)), float(rng.uniform(0.4, 1.5)), cv2.FILLED)


def shade(rng: np.random.Generator, plate: Plate, gain: Field) -> None:
    """Wide darker or brighter bands, as of uneven pickling."""
    x = np.arange(WIDTH, dtype=np.float32)[None]
    centre, width = rng.uniform(plate.left, plate.right), rng.uniform(15, 200)
    wave = np.exp(-(((x - centre) / np.float32(width)) ** 2))
    rough = 1 + np.float32(0.3) * noise(rng, SHAPE, (3, 40))
    gain *= 1 + np.float32(rng.uniform(-0.22, 0.3)) * wave * rough


MARKS = (oil, oil, water, roll_lines, roll_lines, dust, shade, shade)
"""One is drawn at random; each changes `gain` in place."""
