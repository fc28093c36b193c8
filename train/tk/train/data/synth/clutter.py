"""Things that lie about a bench and are no tool: fasteners, cable, paper with text, tape."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.synth.materials import plastic, rubber, shade, steel, wood
from tk.train.data.synth.paint import Material, Part
from tk.train.data.synth.shapes import bars, box, disc, line, ribbon, rounded, smooth, turn


def nut(rng: np.random.Generator) -> list[Part]:
    """A hexagon nut."""
    metal = steel(rng)
    return [Part([disc(0, 0, 0.5, corners=6)], metal, bevel=0.08, holes=[disc(0, 0, 0.27)])]


def washer(rng: np.random.Generator) -> list[Part]:
    """A flat ring."""
    inner = rng.uniform(0.2, 0.38)
    return [Part([disc(0, 0, 0.5)], steel(rng), bevel=0.04, holes=[disc(0, 0, inner)])]


def bolt(rng: np.random.Generator) -> list[Part]:
    """A bolt with a hexagon head, seen from the side."""
    metal = steel(rng)
    thread = bars(-0.1, 0.49, -0.1, 0.1, 14, 0.014, 0.012)
    return [
        Part([box(-0.35, -0.1, 0.5, 0.1, 0.02)], metal, bevel=0.1),
        Part(thread, shade(metal, 0.55), decal=True),
        Part([box(-0.5, -0.2, -0.34, 0.2, 0.03)], metal, bevel=0.06),
    ]


def nail(rng: np.random.Generator) -> list[Part]:
    """A round nail."""
    metal = steel(rng)
    body = line([(-0.5, -0.02), (0.44, -0.02), (0.5, 0), (0.44, 0.02), (-0.5, 0.02)])
    return [
        Part([body], metal, bevel=0.02),
        Part([box(-0.52, -0.05, -0.49, 0.05)], metal, bevel=0.02),
    ]


def cable(rng: np.random.Generator) -> list[Part]:
    """A bent length of insulated wire."""
    points = np.stack([np.linspace(-0.5, 0.5, 6), rng.uniform(-0.3, 0.3, 6)], axis=1)
    width = rng.uniform(0.014, 0.035)
    return [Part([ribbon(points, [width] * 6, start=1, stop=1)], plastic(rng), bevel=width / 2)]


def paper(rng: np.random.Generator) -> list[Part]:
    """A scrap of paper with lines of print, made of strokes as long as words."""
    tall = rng.uniform(0.3, 0.75)
    gray = rng.uniform(205, 245)
    white = Material((gray, gray, gray * rng.uniform(0.88, 1)), 0.2, 0.0)
    ink = Material((rng.uniform(20, 90),) * 3, 0.1, 0.0)
    edge = np.array([(-0.5, -tall / 2), (0.5, -tall / 2), (0.5, tall / 2), (-0.5, tall / 2)])
    sheet = edge + rng.normal(0, 0.012, (4, 2))
    words = []
    for y in np.arange(-tall / 2 + 0.07, tall / 2 - 0.06, 0.05).tolist():
        x = -0.43
        while x < 0.3:
            length = float(rng.uniform(0.015, 0.1))
            words.append(box(x, y, x + length, y + 0.014))
            x += length + 0.018
        if rng.random() < 0.2:
            break
    return [Part([sheet], white, bevel=0.004, lift=0.004), Part(words, ink, decal=True)]


def tape(rng: np.random.Generator) -> list[Part]:
    """A roll of insulating tape."""
    material = plastic(rng)
    return [
        Part([disc(0, 0, 0.5)], material, bevel=0.05, holes=[disc(0, 0, 0.33)]),
        Part([disc(0, 0, 0.36)], shade(material, 0.6), bevel=0.02, holes=[disc(0, 0, 0.33)]),
    ]


def block(rng: np.random.Generator) -> list[Part]:
    """An offcut or a small case."""
    tall = rng.uniform(0.2, 0.6)
    material = wood(rng) if rng.random() < 0.5 else plastic(rng)
    return [Part([box(-0.5, -tall / 2, 0.5, tall / 2, 0.04)], material, bevel=0.03)]


def rag(rng: np.random.Generator) -> list[Part]:
    """A crumpled cloth."""
    angle = np.arange(9) * (2 * np.pi / 9)
    radius = rng.uniform(0.3, 0.5, 9)
    outline = smooth(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))
    cloth = plastic(rng)
    r, g, b = (0.55 * c + 55 for c in cloth.colour)  # washed out
    matt = Material((r, g, b), 0.4, 0.0)
    parts = [Part([outline], matt, bevel=0.16)]
    for _ in range(3):  # folds: the cloth lies on itself
        at = rng.uniform(-0.12, 0.12, 2)
        fold = turn(outline * rng.uniform(0.3, 0.6, 2), float(rng.uniform(0, 360))) + at
        parts.append(Part([fold], shade(matt, rng.uniform(0.92, 1.05)), bevel=0.14, lift=0.006))
    return parts


def pencil(rng: np.random.Generator) -> list[Part]:
    """A pencil: a coloured stick, bare wood, a lead."""
    coat = plastic(rng)
    bare = Material((214, 178, 128), 0.4, 0.05)
    cone = line([(0.4, -0.03), (0.5, 0), (0.4, 0.03)])
    return [
        Part([cone], bare, bevel=0.02),
        Part([line([(0.47, -0.009), (0.5, 0), (0.47, 0.009)])], shade(coat, 0.3), decal=True),
        Part([box(-0.5, -0.03, 0.41, 0.03)], coat, bevel=0.03),
        Part([box(-0.5, -0.03, 0.41, -0.01)], shade(coat, 0.8), decal=True),
    ]


def grommet(rng: np.random.Generator) -> list[Part]:
    """A rubber ring."""
    outline = rounded([(-0.5, -0.3), (0.5, -0.3), (0.5, 0.3), (-0.5, 0.3)], 0.28)
    return [Part([outline], rubber(rng), bevel=0.08, holes=[outline * 0.62])]


Thing = tuple[Callable[[np.random.Generator], list[Part]], float, float]
THINGS: tuple[Thing, ...] = (
    (nut, 0.02, 0.045), (washer, 0.02, 0.05), (bolt, 0.05, 0.1), (nail, 0.05, 0.11),
    (cable, 0.2, 0.7), (paper, 0.15, 0.4), (tape, 0.09, 0.16), (block, 0.08, 0.25),
    (rag, 0.2, 0.4), (pencil, 0.15, 0.25), (grommet, 0.03, 0.07),
)  # fmt: skip
"""(drawing, least and greatest length as a fraction of the scene's long side)."""

_WORDS = (
    "M8x40",
    "No. 7",
    "TOOL ROOM",
    "INV 0412",
    "CHECK",
    "10-12",
    "SHELF B",
    "A4",
    "25 kg",
    "OK",
)


def write_marks(rng: np.random.Generator, canvas: NDArray[np.uint8]) -> None:
    """Write marks and numbers on the surface of a scene, in a third of the scenes.

    Args:
        rng: source of every choice.
        canvas: (H, W, 3) uint8, RGB; changed in place.
    """
    if rng.random() > 0.33:
        return
    height, width = canvas.shape[:2]
    for _ in range(int(rng.integers(1, 4))):
        word = _WORDS[int(rng.integers(len(_WORDS)))]
        scale = rng.uniform(0.5, 1.4) * max(height, width) / 640
        at = (int(rng.uniform(0, 0.9 * width)), int(rng.uniform(0.05, 1) * height))
        dark = rng.random() < 0.6
        level = rng.uniform(10, 70) if dark else rng.uniform(180, 245)
        colour = (level, level * rng.uniform(0.8, 1), level * rng.uniform(0.8, 1))
        font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX]))
        cv2.putText(canvas, word, at, font, scale, colour, max(1, round(1.6 * scale)), cv2.LINE_AA)
