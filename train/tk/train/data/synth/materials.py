"""Surfaces of tools and of the things that lie about: steel, plastic, wood, rubber, paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tk.train.data.synth.paint import Material

Colour = tuple[float, float, float]

_PLASTICS: tuple[Colour, ...] = (
    (190, 32, 30), (28, 70, 160), (225, 170, 25), (35, 125, 60), (225, 95, 25),
    (45, 45, 48), (20, 125, 140), (150, 25, 60), (120, 70, 150), (185, 185, 30),
)  # fmt: skip
_WOODS: tuple[Colour, ...] = ((150, 92, 48), (112, 62, 32), (186, 132, 76), (90, 48, 30))
_BLACK: Colour = (42, 42, 45)


def jitter(rng: np.random.Generator, colour: Colour, spread: float = 0.12) -> Colour:
    """The colour, a little brighter or darker and a little off."""
    scale = rng.uniform(1 - spread, 1 + spread) + rng.normal(0, spread / 5, 3)
    r, g, b = np.clip(np.asarray(colour) * scale, 0, 255).tolist()
    return r, g, b


def shade(material: Material, factor: float) -> Material:
    """The same surface, darker or brighter by a factor."""
    r, g, b = (min(255.0, c * factor) for c in material.colour)
    return Material((r, g, b), material.contrast, material.gloss, material.tight, material.bands)


def steel(rng: np.random.Generator) -> Material:
    """Tool steel: chromed, satin, worn, or blackened."""
    kind = rng.random()
    if kind < 0.35:
        return Material(jitter(rng, (172, 176, 182)), 0.45, 0.75, 0.16, 0.28)
    if kind < 0.7:
        return Material(jitter(rng, (146, 148, 150)), 0.5, 0.45, 0.25, 0.14)
    if kind < 0.85:
        return Material(jitter(rng, (128, 118, 106)), 0.5, 0.25, 0.3, 0.1)
    return Material(jitter(rng, (84, 86, 92)), 0.6, 0.5, 0.22, 0.16)


def bright_steel(rng: np.random.Generator) -> Material:
    """Chromed or nickelled steel only."""
    return Material(jitter(rng, (170, 173, 178)), 0.5, 0.75, 0.18, 0.26)


def plastic(rng: np.random.Generator, colours: Sequence[Colour] = _PLASTICS) -> Material:
    """Moulded or dipped plastic of a tool-handle colour."""
    colour = jitter(rng, colours[int(rng.integers(len(colours)))])
    return Material(colour, 0.55, rng.uniform(0.25, 0.6), rng.uniform(0.12, 0.25))


def rubber(rng: np.random.Generator) -> Material:
    """Dark rubber, nearly matt."""
    return Material(jitter(rng, _BLACK, 0.25), 0.6, 0.12, 0.35)


def amber(rng: np.random.Generator) -> Material:
    """Clear cellulose acetate, amber or greenish, as on old screwdrivers."""
    colours: tuple[Colour, ...] = ((214, 140, 38), (226, 176, 70), (190, 80, 30), (150, 165, 60))
    return Material(jitter(rng, colours[int(rng.integers(4))]), 0.5, 0.8, 0.12, 0.12)


def wood(rng: np.random.Generator) -> Material:
    """Turned and varnished wood."""
    colour = jitter(rng, _WOODS[int(rng.integers(len(_WOODS)))])
    return Material(colour, 0.6, rng.uniform(0.1, 0.45), 0.22)


def paint_coat(rng: np.random.Generator) -> Material:
    """Enamel on steel."""
    return plastic(rng, ((40, 80, 150), (170, 40, 35), (45, 110, 70), (60, 62, 66)))
