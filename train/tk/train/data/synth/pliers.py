"""Drawings of four kinds of pliers: two crossing halves about a pivot, jaws towards +x."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tk.train.data.synth.materials import bright_steel, plastic, rubber, shade, steel
from tk.train.data.synth.paint import Material, Part
from tk.train.data.synth.shapes import (
    Pairs,
    Points,
    bars,
    disc,
    flip,
    line,
    ribbon,
    rounded,
    smooth,
    turn,
)


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half of a pair of pliers, its jaw above the axis and its handle below (y down).

    Attributes:
        jaw: closed outline of the jaw; the inner edge lies on y = 0.
        boss: radius of the round body about the pivot.
        handle: centre line from the boss to the end of the grip.
        thick: widths along `handle`.
        marks: darker strokes on the jaw (teeth, edges).
        facets: ground faces on the jaw, brighter than the body.
    """

    jaw: Points
    boss: float
    handle: Pairs
    thick: tuple[float, ...]
    marks: tuple[Points, ...] = ()
    facets: tuple[Points, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grip:
    """The sleeve of a handle: from which point of its centre line, how much thicker, its looks."""

    material: Material
    first: int = 1
    extra: float = 0.02
    flare: float = 0.0
    bevel: float = 0.028
    stripe: Material | None = None


def _half(half: Half, metal: Material, grip: Grip | None, side: int, opening: float) -> list[Part]:
    def place(points: Points) -> Points:
        return turn(points if side > 0 else flip(points), -opening * side)

    handle, widths = line(half.handle), half.thick
    arm = ribbon(handle, widths, stop=0.6)
    body = [half.jaw, disc(0, 0, half.boss), arm]
    parts = [Part([place(p) for p in body], metal, bevel=0.014)]
    if half.facets:
        parts.append(Part([place(p) for p in half.facets], shade(metal, 1.25), decal=True))
    if half.marks:
        parts.append(Part([place(p) for p in half.marks], shade(metal, 0.35), decal=True))
    if grip is None:
        return parts
    sleeve_line, sleeve_widths = (
        handle[grip.first :],
        [w + grip.extra for w in widths[grip.first :]],
    )
    sleeve = [ribbon(sleeve_line, sleeve_widths, start=0.35, stop=0.8)]
    if grip.flare > 0:
        sleeve.append(_guard(sleeve_line, sleeve_widths[0], grip.flare))
    parts.append(Part([place(p) for p in sleeve], grip.material, bevel=grip.bevel))
    if grip.stripe is not None:
        inner = ribbon(sleeve_line[1:-1], [w * 0.42 for w in sleeve_widths[1:-1]], start=1, stop=1)
        parts.append(Part([place(inner)], grip.stripe, decal=True))
    return parts


def _guard(centre: Points, width: float, flare: float) -> Points:
    """The bulge at the top of a sleeve that keeps the hand from slipping forward."""
    along = centre[1] - centre[0]
    along /= np.hypot(*along)
    outward = np.array([-along[1], along[0]])
    outward *= np.sign(outward[1]) or 1.0
    start = centre[0] + along * 0.008
    return rounded(
        [
            tuple(start),
            tuple(start + outward * (width / 2 + flare)),
            tuple(start + outward * (width / 2 + flare * 0.8) + along * 0.035),
            tuple(start + along * 0.11 + outward * width / 2 * 0.9),
        ],
        0.02,
    )


def _assemble(
    rng: np.random.Generator, half: Half, metal: Material, grip: Grip | None, opening: float
) -> list[Part]:
    lower = _half(half, metal, grip, -1, opening)
    upper = _half(half, metal, grip, 1, opening)
    rivet = half.boss * rng.uniform(0.4, 0.52)
    pivot = [
        Part([disc(0, 0, rivet)], shade(metal, 0.9), bevel=rivet * 0.35, lift=0.006),
        Part([disc(0, 0, rivet * 0.45)], shade(metal, 0.72), bevel=0.01, lift=0.0),
    ]
    return [*lower, *upper, *pivot]


def _bow(length: float, spread: float, *, close: float = 0.8) -> list[tuple[float, float]]:
    """A handle's centre line that bows outwards: it starts at the pivot and ends at -length."""
    return [
        (-0.02, 0.018),
        (-0.15, spread * 0.62),
        (-0.32 * length / 0.66, spread),
        (-0.5 * length / 0.66, spread * (1 + close) / 2),
        (-length, spread * close),
    ]


def _jaw(inner: Pairs, outer: Pairs) -> Points:
    """A jaw: straight spans from the pivot to the tip, then a curve back along the outside."""
    return np.concatenate([line(inner), smooth(outer, closed=False)])


def combination_pliers(rng: np.random.Generator) -> list[Part]:
    """A tapering blunt nose with a flat toothed tip, an oval toothed pipe grip, a cutter."""
    metal = steel(rng)
    length, tip = rng.uniform(0.31, 0.35), rng.uniform(0.034, 0.042)
    grip_from, grip_to, deep = 0.10, 0.2, 0.024
    arc = [
        (grip_from + (grip_to - grip_from) * t, -deep * np.sin(np.pi * t) ** 0.7)
        for t in np.linspace(0, 1, 11)
    ]
    toothed = [(x, y - 0.005 * (i % 2)) for i, (x, y) in enumerate(arc)]
    jaw = _jaw(
        [(0, 0), *toothed, (length, 0), (length, 0.006 - tip)],
        [(length - 0.006, -tip), (0.22, -0.055), (0.1, -0.079), (0.03, -0.087), (-0.05, -0.05)],
    )
    teeth = bars(grip_to + 0.012, length - 0.004, -0.022, -0.002, 8, 0.005)
    edge = line([(0.04, 0), (0.095, 0), (0.09, -0.009), (0.045, -0.009)])
    half = Half(
        jaw=jaw,
        boss=0.076,
        handle=_bow(0.66, rng.uniform(0.085, 0.1)),
        thick=(0.07, 0.052, 0.048, 0.048, 0.042),
        marks=(*teeth, edge),
    )
    stripe = rubber(rng) if rng.random() < 0.5 else None
    grip = Grip(material=plastic(rng), extra=0.026, flare=0.022, stripe=stripe)
    return _assemble(rng, half, metal, grip, rng.uniform(0.5, 8))


def side_cutters(rng: np.random.Generator) -> list[Part]:
    """Short broad jaws that come to a point, ground to an edge; a round gap behind the edges."""
    metal = steel(rng)
    length = rng.uniform(0.19, 0.22)
    gap = [(0.035, 0.0), (0.045, -0.012), (0.065, -0.014), (0.08, 0.0)]
    jaw = _jaw(
        [(0, 0), *gap, (length, 0), (length, -0.008)],
        [(length - 0.002, -0.012), (length * 0.84, -0.045), (length * 0.58, -0.078),
         (length * 0.3, -0.095), (0.0, -0.098), (-0.06, -0.06)],
    )  # fmt: skip
    facet = line([(0.075, -0.012), (0.082, 0), (length, 0), (length * 0.9, -0.024), (0.11, -0.046)])
    seam = line(
        [(0.072, -0.012), (0.11, -0.046), (length * 0.9, -0.024), (0.11, -0.054), (0.066, -0.014)]
    )
    half = Half(
        jaw=jaw,
        boss=0.088,
        handle=_bow(0.6, rng.uniform(0.085, 0.105), close=0.75),
        thick=(0.075, 0.05, 0.046, 0.046, 0.04),
        marks=(seam,),
        facets=(facet,),
    )
    grip = Grip(material=plastic(rng), extra=0.028, flare=0.012 * int(rng.integers(0, 2)))
    return _assemble(rng, half, metal, grip, rng.uniform(1, 11))


def lineman_pliers(rng: np.random.Generator) -> list[Part]:
    """A heavy square nose, flat toothed tips, a cutter beside the pivot, long dipped handles."""
    metal = steel(rng)
    length, wide = rng.uniform(0.27, 0.3), rng.uniform(0.074, 0.082)
    jaw = _jaw(
        [(0, 0), (0.15, 0), (0.155, -0.004), (length, -0.004), (length, 0.01 - wide),
         (length - 0.01, -wide)],
        [(length - 0.03, -wide), (0.16, -wide - 0.002), (0.07, -0.098), (-0.02, -0.1),
         (-0.07, -0.06)],
    )  # fmt: skip
    teeth = bars(0.165, length - 0.004, -0.044, -0.006, 9, 0.005)
    cutter = line([(0.05, 0), (0.145, 0), (0.14, -0.02), (0.06, -0.02)])
    notch = line([(0.05, -0.02), (0.14, -0.02), (0.14, -0.026), (0.05, -0.026)])
    half = Half(
        jaw=jaw,
        boss=0.098,
        handle=_bow(0.72, rng.uniform(0.095, 0.11), close=0.95),
        thick=(0.085, 0.056, 0.048, 0.046, 0.044),
        marks=(*teeth, notch),
        facets=(cutter,),
    )
    dip = plastic(rng, ((190, 32, 30), (28, 70, 160), (225, 170, 25), (225, 95, 25)))
    return _assemble(
        rng, half, metal, Grip(material=dip, extra=0.014, bevel=0.03), rng.uniform(0.3, 6)
    )


def retaining_ring_pliers(rng: np.random.Generator) -> list[Part]:
    """Slim jaws that taper to two thin pins, a small pivot, slim dipped handles."""
    metal = bright_steel(rng) if rng.random() < 0.5 else steel(rng)
    length, pin = rng.uniform(0.27, 0.32), rng.uniform(0.05, 0.065)
    jaw = _jaw(
        [(0, 0.004), (0.08, -0.006), (length, -0.003), (length + pin, -0.004),
         (length + pin, -0.0135), (length, -0.0145), (length - 0.004, -0.024)],
        [(length - 0.01, -0.025), (0.16, -0.037), (0.06, -0.053), (0, -0.058), (-0.05, -0.03)],
    )  # fmt: skip
    step = line(
        [(length - 0.01, -0.003), (length - 0.002, -0.003), (length - 0.002, -0.024),
         (length - 0.01, -0.024)]
    )  # fmt: skip
    half = Half(
        jaw=jaw,
        boss=0.056,
        handle=_bow(0.6, rng.uniform(0.085, 0.105), close=0.9),
        thick=(0.048, 0.036, 0.034, 0.034, 0.032),
        marks=(step,),
    )
    grip = Grip(material=plastic(rng), extra=0.016, bevel=0.022) if rng.random() < 0.9 else None
    return _assemble(rng, half, metal, grip, rng.uniform(2, 8))
