"""Drawings of the three screwdrivers, tips towards +x."""

from __future__ import annotations

import numpy as np

from tk.train.data.synth.materials import (
    amber,
    bright_steel,
    plastic,
    rubber,
    shade,
    steel,
    wood,
)
from tk.train.data.synth.paint import Material, Part
from tk.train.data.synth.shapes import Points, box, disc, line, ribbon


def slotted_screwdriver(rng: np.random.Generator) -> list[Part]:
    """A wooden or clear fluted handle with a ferrule, a slim shaft, a wide flat blade."""
    metal = bright_steel(rng)
    shaft, blade = rng.uniform(0.017, 0.023), rng.uniform(0.042, 0.056)
    reach = rng.uniform(0.54, 0.62)
    tip = line(
        [(reach - 0.13, -shaft / 2), (reach - 0.075, -blade / 2), (reach - 0.03, -blade / 2),
         (reach, -blade * 0.42), (reach, blade * 0.42), (reach - 0.03, blade / 2),
         (reach - 0.075, blade / 2), (reach - 0.13, shaft / 2)]
    )  # fmt: skip
    ground = line([(reach - 0.06, -blade / 2), (reach, -blade * 0.42), (reach, blade * 0.42),
                   (reach - 0.06, blade / 2)])  # fmt: skip
    parts = [
        Part([box(0, -shaft / 2, reach - 0.12, shaft / 2)], metal, bevel=shaft / 2, turned=True),
        Part([tip], metal, bevel=0.006, lift=0.0),
        Part([ground], shade(metal, 1.2), decal=True),
    ]
    handle = _wooden_handle(rng) if rng.random() < 0.45 else _fluted_handle(rng)
    return [*parts, *handle]


def _wooden_handle(rng: np.random.Generator) -> list[Part]:
    """A turned pear shape with a metal ferrule and a domed cap."""
    material, metal = wood(rng), steel(rng)
    wide = rng.uniform(0.105, 0.125)
    body = ribbon(
        [(-0.38, 0), (-0.34, 0), (-0.26, 0), (-0.16, 0), (-0.08, 0), (-0.02, 0)],
        [wide * 0.75, wide * 0.98, wide, wide * 0.82, wide * 0.55, wide * 0.6], start=0.5,
    )  # fmt: skip
    ring = box(-0.3, -wide * 0.5, -0.292, wide * 0.5)
    grain = [
        ribbon([(-0.36, y), (-0.22, y * 1.15), (-0.08, y * 0.6)], [0.002, 0.004, 0.002])
        for y in rng.uniform(-0.42, 0.42, 5) * wide
    ]
    ferrule = box(-0.04, -wide * 0.3, 0.035, wide * 0.3, 0.008)
    return [
        Part([body], material, bevel=wide * 0.5, turned=True),
        Part(grain, shade(material, 0.72), decal=True),
        Part([ring], shade(material, 0.6), decal=True),
        Part([ferrule], metal, bevel=wide * 0.3, lift=0.006, turned=True),
    ]


def _fluted_handle(rng: np.random.Generator) -> list[Part]:
    """A straight clear handle with lengthwise flutes and a domed end."""
    material = amber(rng) if rng.random() < 0.75 else plastic(rng)
    wide = rng.uniform(0.095, 0.115)
    body = ribbon(
        [(-0.37, 0), (-0.33, 0), (-0.1, 0), (-0.045, 0), (0.0, 0), (0.02, 0)],
        [wide * 0.8, wide, wide, wide * 0.72, wide * 0.7, wide * 0.5], start=0.45,
    )  # fmt: skip
    flutes = [
        ribbon([(-0.33, y), (-0.3, y), (-0.14, y), (-0.1, y)], [0.003, 0.012, 0.012, 0.003])
        for y in (-0.33 * wide, 0.0, 0.33 * wide)
    ]
    collar = box(-0.05, -wide * 0.37, -0.035, wide * 0.37)
    return [
        Part([body], material, bevel=wide * 0.5, turned=True),
        Part(flutes, shade(material, 0.62), bevel=0.01, lift=0.0),
        Part([collar], shade(material, 0.6), decal=True),
    ]


def phillips_screwdriver(rng: np.random.Generator) -> list[Part]:
    """A two-coloured soft grip with a bulb end, a stout shaft, a pointed tip with cross flutes."""
    metal = bright_steel(rng)
    shaft, reach = rng.uniform(0.03, 0.037), rng.uniform(0.48, 0.56)
    r = shaft / 2
    tip = line(
        [(reach - 0.06, -r), (reach - 0.045, -r * 1.0), (reach - 0.006, -r * 0.28), (reach, 0),
         (reach - 0.006, r * 0.28), (reach - 0.045, r * 1.0), (reach - 0.06, r)]
    )  # fmt: skip
    flutes = [
        ribbon([(reach - 0.085, y), (reach - 0.045, y * 0.9), (reach - 0.012, y * 0.35)],
               [0.002, 0.009, 0.004], start=1.0)
        for y in (-r * 0.5, r * 0.5)
    ]  # fmt: skip
    dark = [box(reach - 0.1, -r, reach - 0.062, r)] if rng.random() < 0.6 else []
    parts = [
        Part([box(0, -r, reach - 0.055, r)], metal, bevel=r, turned=True),
        Part([tip], shade(metal, 0.8), bevel=r, lift=0.0, turned=True),
        *([Part(dark, shade(metal, 0.5), decal=True)] if dark else []),
        Part(flutes, shade(metal, 0.3), decal=True),
    ]
    return [*parts, *_soft_handle(rng)]


def _soft_handle(rng: np.random.Generator) -> list[Part]:
    """A bulbous end, a waist, a guard; a bright core with dark rubber pads."""
    core, pad = plastic(rng), rubber(rng)
    if rng.random() < 0.3:
        core, pad = pad, core
    wide = rng.uniform(0.125, 0.145)
    body = ribbon(
        [(-0.39, 0), (-0.36, 0), (-0.3, 0), (-0.2, 0), (-0.1, 0), (-0.05, 0), (0.0, 0), (0.03, 0)],
        [wide * 0.55, wide * 0.85, wide, wide * 0.92, wide * 0.7, wide * 0.62, wide * 0.78,
         wide * 0.4], start=0.5,
    )  # fmt: skip
    pads = [
        ribbon([(-0.33, y), (-0.27, y * 1.08), (-0.17, y), (-0.09, y * 0.75)],
               [0.006, 0.032, 0.03, 0.006], start=1, stop=1)
        for y in (-0.3 * wide, 0.3 * wide)
    ]  # fmt: skip
    cap = disc(-0.375, 0, 0.016, wide * 0.22)
    return [
        Part([body], core, bevel=wide * 0.5, turned=True),
        Part(pads, pad, bevel=0.016, lift=0.0),
        Part([cap], pad, bevel=0.01, lift=0.0),
        Part([box(-0.065, -wide * 0.3, -0.05, wide * 0.3)], shade(core, 0.6), decal=True),
    ]


def offset_screwdriver(rng: np.random.Generator) -> list[Part]:
    """A Z of bar: two short legs bent opposite ways, each ending in a blade."""
    metal = steel(rng)
    thick, leg = rng.uniform(0.055, 0.075), rng.uniform(0.17, 0.23)
    bend = 0.045
    spine: list[tuple[float, float]] = [
        (0.0, -leg), (0.0, -bend), (0.012, -0.012), (bend, 0.0),
        (1 - bend, 0.0), (0.988, 0.012), (1.0, bend), (1.0, leg),
    ]  # fmt: skip
    bar = ribbon(spine, [thick] * 8, curved=False)
    wide = thick * rng.uniform(1.25, 1.6)
    parts = [Part([bar], metal, bevel=thick * 0.5)]
    if rng.random() < 0.6:  # a six-sided bar shows a flat along its spine
        flat = ribbon([(0.05, 0), (0.95, 0)], [thick * 0.4] * 2, curved=False)
        parts.append(Part([flat], shade(metal, 1.12), decal=True))
    cross = rng.random() < 0.3
    parts += _leg_tip(metal, thick, wide, (0.0, -leg), -1.0)
    parts += (
        _cross_tip(metal, thick, (1.0, leg))
        if cross
        else _leg_tip(metal, thick, wide, (1.0, leg), 1.0)
    )
    return parts


def _leg_tip(
    metal: Material, thick: float, wide: float, at: tuple[float, float], way: float
) -> list[Part]:
    """A flared flat blade at the end of a leg that points along y by `way`."""
    x, y = at

    def shape(pairs: list[tuple[float, float]]) -> Points:
        return line([(x + u, y + way * v) for u, v in pairs])

    blade = shape(
        [(-thick / 2, -0.035), (-wide / 2, 0.01), (-wide / 2, 0.035), (wide / 2, 0.035),
         (wide / 2, 0.01), (thick / 2, -0.035)]
    )  # fmt: skip
    ground = shape([(-wide / 2, 0.012), (-wide / 2, 0.035), (wide / 2, 0.035), (wide / 2, 0.012)])
    return [
        Part([blade], metal, bevel=0.008, lift=0.0),
        Part([ground], shade(metal, 1.3), decal=True),
    ]


def _cross_tip(metal: Material, thick: float, at: tuple[float, float]) -> list[Part]:
    """A pointed cross tip at the end of the lower leg."""
    x, y = at
    r = thick / 2
    cone = line(
        [(x - r, y - 0.02), (x - r * 0.2, y + 0.05), (x + r * 0.2, y + 0.05), (x + r, y - 0.02)]
    )
    flutes = [
        ribbon([(x + s * r * 0.5, y - 0.02), (x + s * r * 0.2, y + 0.04)], [0.012, 0.006])
        for s in (-1.0, 1.0)
    ]
    return [
        Part([cone], metal, bevel=r, lift=0.0),
        Part(flutes, shade(metal, 0.35), decal=True),
    ]
