"""Drawings of the wrenches, the brace and the oil-can opener."""

from __future__ import annotations

import numpy as np

from tk.train.data.synth.materials import bright_steel, paint_coat, rubber, shade, steel, wood
from tk.train.data.synth.paint import Material, Part
from tk.train.data.synth.shapes import (
    Points,
    bars,
    box,
    disc,
    line,
    move,
    ribbon,
    rounded,
    smooth,
    turn,
)


def adjustable_wrench(rng: np.random.Generator) -> list[Part]:
    """A tapering handle with a hang hole; a slanted head, one jaw fixed, one sliding on a worm."""
    metal = steel(rng)
    gap = rng.uniform(0.025, 0.085)
    slant = rng.uniform(-26, -18)

    def head(points: Points) -> Points:
        return move(turn(points, slant), 0.72, -0.012)

    fixed = rounded(
        [(-0.13, 0.03), (-0.13, -0.05), (-0.05, -0.1), (0.05, -0.125), (0.15, -0.108), (0.2, -0.07),
         (0.195, -0.05), (0.035, -0.05), (0.035, 0.105), (0.005, 0.125), (-0.05, 0.085)], 0.022,
    )  # fmt: skip
    low = -0.05 + gap
    sliding = rounded(
        [(0.03, low), (0.185, low), (0.19, low + 0.018), (0.12, low + 0.06), (0.05, low + 0.085),
         (0.005, low + 0.085), (0.005, low + 0.01)], 0.012,
    )  # fmt: skip
    window = box(-0.065, -0.02, -0.005, 0.065, 0.01)
    worm = box(-0.06, -0.014, -0.01, 0.059, 0.006)
    knurl = [turn(p, 90) for p in bars(-0.012, 0.057, 0.012, 0.058, 7, 0.005, 0.004)]
    arm = ribbon(
        [(-0.02, 0), (0.1, 0), (0.35, 0), (0.55, 0), (0.66, -0.002)],
        [0.098, 0.096, 0.082, 0.075, 0.1], start=0.85,
    )  # fmt: skip
    hole = disc(0.015, 0, 0.024)
    parts = [Part([head(sliding)], shade(metal, 0.95), bevel=0.01)]
    parts.append(Part([arm, head(fixed)], metal, bevel=0.012, holes=[hole]))
    panel = ribbon([(0.1, 0), (0.32, 0), (0.56, 0)], [0.05, 0.046, 0.04], start=0.6, stop=0.6)
    parts.append(_panel(rng, panel, metal))
    parts.append(Part([head(window)], shade(metal, 0.25), bevel=0.004, lift=0.0))
    parts.append(Part([head(worm)], metal, bevel=0.025, lift=0.0))
    parts.append(Part([head(p) for p in knurl], shade(metal, 0.4), decal=True))
    if rng.random() < 0.25:
        sleeve = ribbon([(0.07, 0), (0.3, 0), (0.5, 0)], [0.108, 0.1, 0.092], start=0.3, stop=0.3)
        parts.append(Part([sleeve], rubber(rng), bevel=0.04))
    return parts


def _panel(rng: np.random.Generator, outline: Points, metal: Material) -> Part:
    """The sunk panel of a forged shank: dark, painted, or barely darker."""
    kind = rng.random()
    material = paint_coat(rng) if kind < 0.25 else shade(metal, 0.6 if kind < 0.6 else 0.82)
    return Part([outline], material, bevel=0.01, lift=0.004)


def open_end_wrench(rng: np.random.Generator) -> list[Part]:
    """A flat shank with an open jaw at both ends, each turned 15 degrees, of two sizes."""
    metal = steel(rng)
    big, small = rng.uniform(0.112, 0.125), rng.uniform(0.088, 0.1)
    shank = ribbon(
        [(0.04, 0), (0.16, 0), (0.5, 0), (0.84, 0), (0.96, 0)], [0.11, 0.075, 0.066, 0.07, 0.12]
    )
    right = move(turn(_open_head(big), -15), 0.94, 0)
    left = move(turn(_open_head(small), 165), 0.06, 0)
    parts = [Part([shank, right, left], metal, bevel=0.014)]
    # The jaws are cut out of the union, so the shank must stop short of them.
    panel = ribbon([(0.22, 0), (0.5, 0), (0.78, 0)], [0.034, 0.036, 0.036], start=0.8, stop=0.8)
    parts.append(_panel(rng, panel, metal))
    stamps = [box(x, -0.01, x + 0.016, 0.01) for x in 0.4 + np.cumsum(rng.uniform(0.022, 0.04, 5))]
    parts.append(Part(stamps, shade(metal, 0.45), decal=True))
    return parts


def _open_head(radius: float) -> Points:
    """A round head with a U cut to +x, about the origin."""
    arc = np.linspace(0.4 * np.pi, 1.6 * np.pi, 40)
    rim = np.stack([radius * np.cos(arc), radius * np.sin(arc)], axis=1)
    prong = [(0.62, -0.92), (0.9, -0.8), (1.1, -0.64), (1.14, -0.46), (0.14, -0.46), (-0.12, -0.26)]
    cut = [(x * radius, y * radius) for x, y in prong]
    cut += [(x, -y) for x, y in reversed(cut)]
    return np.concatenate([rim, line(cut)])


def brace(rng: np.random.Generator) -> list[Part]:
    """A carpenter's brace: head knob, crank with a sweep handle, ratchet and chuck."""
    metal, timber = bright_steel(rng) if rng.random() < 0.6 else steel(rng), wood(rng)
    throw, rod = rng.uniform(0.22, 0.28), rng.uniform(0.03, 0.036)
    r = rod / 2
    crank = ribbon(
        [(0.06, 0), (0.2, 0), (0.245, 0.01), (0.27, 0.045), (0.285, throw - 0.05),
         (0.305, throw - 0.012),
         (0.34, throw), (0.56, throw), (0.595, throw - 0.012), (0.615, throw - 0.05), (0.63, 0.045),
         (0.655, 0.01), (0.7, 0), (0.8, 0)], [rod] * 14, curved=False,
    )  # fmt: skip
    knob = smooth(
        [(0.0, -0.08), (0.03, -0.092), (0.05, -0.075), (0.065, -0.035), (0.1, -0.03), (0.1, 0.03),
         (0.065, 0.035), (0.05, 0.075), (0.03, 0.092), (0.0, 0.08), (-0.018, 0.0)]
    )  # fmt: skip
    grip = ribbon(
        [(0.345, throw), (0.4, throw), (0.45, throw), (0.5, throw), (0.555, throw)],
        [0.052, 0.076, 0.082, 0.076, 0.052],
    )
    parts = [
        Part([crank], metal, bevel=r),
        Part([box(0.1, -0.027, 0.135, 0.027, 0.008)], metal, bevel=0.027, lift=0.006, turned=True),
        Part([knob], timber, bevel=0.06),
        Part([grip], timber, bevel=0.04, turned=True),
        Part([box(0.333, throw - 0.024, 0.35, throw + 0.024)], metal, bevel=0.02, lift=0.004),
        Part([box(0.55, throw - 0.024, 0.567, throw + 0.024)], metal, bevel=0.02, lift=0.004),
    ]
    return [*parts, *_chuck(rng, metal)]


def _chuck(rng: np.random.Generator, metal: Material) -> list[Part]:
    """The ratchet box, the knurled shell, the two jaws, sometimes a bit in them."""
    ratchet = box(0.69, -0.04, 0.755, 0.04, 0.012)
    collar = box(0.745, -0.03, 0.775, 0.03)
    shell = ribbon(
        [(0.77, 0), (0.87, 0), (0.91, 0), (0.935, 0)], [0.072, 0.076, 0.06, 0.04], curved=False
    )
    jaws = ribbon([(0.93, 0), (0.985, 0)], [0.036, 0.022], curved=False)
    parts = [
        Part([ratchet], shade(metal, 0.85), bevel=0.02),
        Part(bars(0.7, 0.745, -0.036, 0.036, 4, 0.004), shade(metal, 0.4), decal=True),
        Part([collar], metal, bevel=0.03, lift=0.004, turned=True),
        Part([jaws], shade(metal, 0.8), bevel=0.012),
        Part([box(0.94, -0.002, 0.985, 0.002)], shade(metal, 0.3), decal=True),
        Part([shell], metal, bevel=0.038, turned=True),
        Part(bars(0.79, 0.86, -0.036, 0.036, 7, 0.004), shade(metal, 0.5), decal=True),
    ]
    if rng.random() < 0.3:
        bit = ribbon([(0.97, 0), (1.08, 0), (1.1, 0)], [0.014, 0.014, 0.03], curved=False)
        parts.insert(0, Part([bit], metal, bevel=0.007))
    return parts


def oil_can_opener(rng: np.random.Generator) -> list[Part]:
    """A flat bar: a pointed piercing tip bent down with a lug behind it, a hook hole at the end."""
    metal = steel(rng)
    wide, waist = rng.uniform(0.2, 0.23), rng.uniform(0.115, 0.14)
    w, n = wide / 2, waist / 2
    outline = rounded(
        [(0.0, -w * 0.5), (0.05, -w), (0.2, -w), (0.34, -n), (0.6, -n), (0.74, -w), (0.82, -w),
         (1.0, -0.006), (1.0, 0.006), (0.82, w), (0.74, w), (0.6, n), (0.34, n), (0.2, w),
         (0.05, w),
         (0.0, w * 0.5)], 0.012,
    )  # fmt: skip
    hook = rounded(
        [(0.06, -w * 0.52), (0.17, -w * 0.62), (0.2, -w * 0.3), (0.2, -0.014), (0.155, -0.014),
         (0.155, 0.014), (0.2, 0.014), (0.2, w * 0.3), (0.17, w * 0.62), (0.06, w * 0.52)], 0.01,
    )  # fmt: skip
    bend = line([(0.81, -w), (0.825, -w), (0.825, w), (0.81, w)])
    beak = line([(0.825, -w * 0.95), (0.99, 0), (0.825, w * 0.95)])
    ridge = line([(0.825, -0.006), (0.985, 0), (0.825, 0.006)])
    lug = rounded([(0.7, -0.022), (0.775, -0.016), (0.775, 0.016), (0.7, 0.022)], 0.008)
    parts = [
        Part([outline], metal, bevel=0.009, holes=[hook]),
        Part([beak], shade(metal, 0.72), decal=True),
        Part([ridge], shade(metal, 1.25), decal=True),
        Part([bend], shade(metal, 1.3), decal=True),
        Part([lug], shade(metal, 0.8), bevel=0.01, lift=0.01),
    ]
    rib = ribbon([(0.36, 0), (0.48, 0), (0.6, 0)], [0.03, 0.034, 0.03], start=1, stop=1)
    if rng.random() < 0.7:
        parts.append(Part([rib], metal, bevel=0.014, lift=0.003))
    return parts
