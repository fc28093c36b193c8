"""Outlines of drawings: splines, ribbons, discs, in the drawing's own units (y down)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(N, 2) float64, x and y of an open or closed line, in the drawing's own units."""
Pairs = Sequence[tuple[float, float]] | Points


def line(pairs: Pairs) -> Points:
    """The points as an array."""
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)


def smooth(pairs: Pairs, *, closed: bool = True, steps: int = 6) -> Points:
    """A Catmull-Rom spline through the points, `steps` points per span."""
    points = line(pairs)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate(
            [2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]]
        )
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i, None, :] for i in range(4))
    cubic = t**3 * (3 * b - a - 3 * c + d) + t**2 * (2 * a - 5 * b + 4 * c - d)
    curve: Points = (0.5 * (2 * b + t * (c - a) + cubic)).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def rounded(pairs: Pairs, radius: float, *, steps: int = 4) -> Points:
    """A closed polygon with its corners cut to quadratic curves that start `radius` before each."""
    corners = line(pairs)
    to_last, to_next = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
    reach = []
    for side in (to_last, to_next):
        length = np.maximum(np.hypot(side[:, 0], side[:, 1]), 1e-9)[:, None]
        reach.append(corners + side / length * np.minimum(radius, 0.45 * length))
    t = np.linspace(0.0, 1.0, steps + 1)[None, :, None]
    start, stop, corner = reach[0][:, None], reach[1][:, None], corners[:, None]
    curve: Points = ((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * stop).reshape(-1, 2)
    return curve


def ribbon(
    pairs: Pairs,
    widths: Sequence[float],
    *,
    curved: bool = True,
    start: float = 0.0,
    stop: float = 0.0,
) -> Points:
    """A closed outline around a centre line, one full width per given point.

    Args:
        pairs: (N, 2) centre line.
        widths: N full widths, in the drawing's units.
        curved: pass a spline through the points rather than straight spans.
        start: roundness of the first end, 0 flat, 1 a half circle.
        stop: roundness of the last end.
    """
    steps = 8 if curved else 1
    centre = smooth(pairs, closed=False, steps=steps) if curved else line(pairs)
    at = np.arange(len(centre)) / steps
    half = np.interp(at, np.arange(len(widths)), widths) / 2
    along = np.gradient(centre, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    left, right = centre + across * half[:, None], centre - across * half[:, None]
    ends = []
    for i, sign, round_ in ((-1, 1.0, stop), (0, -1.0, start)):
        turn_ = np.linspace(0, np.pi, 9)[1:-1, None]
        if round_ <= 0:
            ends.append(np.empty((0, 2)))
            continue
        arc = np.cos(turn_) * across[i] * sign + np.sin(turn_) * along[i] * sign * round_
        ends.append(centre[i] + half[i] * arc)
    return np.concatenate([left, ends[0], right[::-1], ends[1]])


def disc(x: float, y: float, radius: float, tall: float = 0.0, *, corners: int = 28) -> Points:
    """A circle, an ellipse (`tall` is its half height) or a regular polygon of few corners."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    height = tall or radius
    return np.stack([x + radius * np.cos(angle), y + height * np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Points:
    """An upright rectangle, its corners rounded by `radius`."""
    corners = line([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return rounded(corners, radius) if radius > 0 else corners


def turn(points: Points, degrees: float, about: tuple[float, float] = (0.0, 0.0)) -> Points:
    """The points turned about a point, from x towards y."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Points = (points - about) @ np.array([[cos, sin], [-sin, cos]]) + about
    return turned


def flip(points: Points) -> Points:
    """The points mirrored in the x axis."""
    return points * (1.0, -1.0)


def move(points: Points, x: float, y: float) -> Points:
    """The points shifted."""
    moved: Points = points + np.array([x, y])
    return moved


def bars(
    x0: float, x1: float, y0: float, y1: float, count: int, width: float, lean: float = 0.0
) -> list[Points]:
    """Short strokes across a strip (knurling, teeth, flutes): `lean` shifts their lower ends."""
    return [
        line([(x, y0), (x + width, y0), (x + width + lean, y1), (x + lean, y1)])
        for x in np.linspace(x0, x1 - width, count)
    ]
