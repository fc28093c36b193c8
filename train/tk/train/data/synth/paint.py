"""Paint a drawing made of parts: silhouettes, bevelled edges, metal and plastic under one light.

All parts of a drawing are shaded together: one map says which part is seen where, one distance
transform gives the slope of every bevel, and one table turns (part, slope) into a colour. A table
look-up costs the same for steel and rubber, which keeps a scene of eight tools within 45 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.synth.shapes import Points

Image = NDArray[np.uint8]
_SHIFT = 4  # sub-pixel bits of the polygon filler
_SLOPES = np.linspace(-1.28, 1.27, 256)
_FINE = 520  # drawings up to this many pixels are painted at twice the size


@dataclass(frozen=True)
class Material:
    """How a surface answers to light.

    Attributes:
        colour: RGB, each 0..255, as seen lying flat.
        contrast: how much a slope towards the light brightens (1 is strong).
        gloss: height of the highlight, 0..1.
        tight: width of the highlight in slopes; small is polished.
        bands: strength of the mirrored surroundings that make a metal look like one.
    """

    colour: tuple[float, float, float]
    contrast: float = 0.5
    gloss: float = 0.2
    tight: float = 0.2
    bands: float = 0.0

    def table(self) -> NDArray[np.float64]:
        """(256, 3) float64, RGB 0..255 for slopes -1.28..1.27 towards the light."""
        shade = 1 + self.contrast * _SLOPES + self.bands * np.sin(4.5 * _SLOPES + 0.3)
        shine = self.gloss * np.exp(-(((_SLOPES - 0.6) / self.tight) ** 2))
        colour = np.asarray(self.colour)
        lit = shade[:, None] * colour
        table: NDArray[np.float64] = lit + shine[:, None] * (255 - 0.3 * colour)
        return table.clip(0, 255)


@dataclass(frozen=True)
class Part:
    """One piece of a drawing; later pieces lie on top of earlier ones.

    Attributes:
        outlines: closed lines whose union is filled.
        material: its surface.
        bevel: radius of the rounded edge, in the drawing's units; half the width makes a rod.
        holes: closed lines cut out of the first outline.
        lift: width of the dark seam it throws on the pieces below it.
        decal: paint only: keep the bevels of the piece below.
        turned: made on a lathe about the x axis: ends that meet another piece have no bevel.
    """

    outlines: Sequence[Points]
    material: Material
    bevel: float = 0.01
    holes: Sequence[Points] = field(default=())
    lift: float = 0.012
    decal: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Sprite:
    """A painted drawing and where it lies.

    Attributes:
        x: left column in the scene, may be negative.
        y: top row in the scene.
        rgb: (H, W, 3) uint8, already multiplied by alpha.
        alpha: (H, W) uint8, 255 is opaque.
    """

    x: int
    y: int
    rgb: Image
    alpha: Image


def project(lines: Sequence[Points], matrix: NDArray[np.float64]) -> tuple[Points, list[Points]]:
    """Lines through a (3, 3) homography: all their points, and the same by line."""
    every = np.concatenate(lines)
    homogeneous = every @ matrix[:, :2].T + matrix[:, 2]
    projected: Points = homogeneous[:, :2] / homogeneous[:, 2:]
    ends = np.cumsum([len(points) for points in lines]).tolist()
    return projected, [projected[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def extent(parts: Sequence[Part]) -> tuple[Points, Points]:
    """The least and the greatest x and y of a drawing."""
    points = np.concatenate([outline for part in parts for outline in part.outlines])
    return points.min(axis=0), points.max(axis=0)


def paint(
    parts: Sequence[Part],
    matrix: NDArray[np.float64],
    light: tuple[float, float],
    sheen: NDArray[np.float32],
) -> Sprite:
    """Paint a drawing into its window of the scene.

    Args:
        parts: pieces, bottom first; at most 255.
        matrix: (3, 3) homography from the drawing's units to scene pixels.
        light: unit vector in the scene towards the light (x right, y down).
        sheen: (h, w) float32, -1..1, uneven reflections, stretched over the whole drawing.
    """
    every, _ = project([p for part in parts for p in part.outlines], matrix)
    low = np.floor(every.min(axis=0)).astype(int) - 2
    width, height = (np.ceil(every.max(axis=0)).astype(int) + 3 - low).tolist()
    fine = 2 if max(width, height) <= _FINE else 1
    unit = fine * _unit(matrix)
    fixed = _fixed(parts, matrix, low, fine)
    seen, edge, seam = _rasterise(parts, fixed, (height * fine, width * fine), unit)
    slope = _slopes(parts, seen, edge, unit, light)
    slope += np.asarray(cv2.resize(sheen, (width * fine, height * fine)), dtype=np.float32)
    code = np.asarray(cv2.convertScaleAbs(slope, alpha=100, beta=128), dtype=np.uint8)
    index = seen.astype(np.intp)
    index <<= 8
    index |= code
    rgba: Image = np.take(_tables(parts), index).view(np.uint8)
    rgba = rgba.reshape(height * fine, width * fine, 4)
    if fine > 1:
        rgba, seam = _shrunk(rgba, (width, height)), _shrunk(seam, (width, height))
    else:  # no finer raster to average: soften the stairs instead
        rgba = np.asarray(cv2.blur(rgba, (3, 3)), dtype=np.uint8)
    rgb = np.asarray(
        cv2.multiply(rgba[:, :, :3], cv2.merge([seam, seam, seam]), scale=1 / 255), dtype=np.uint8
    )
    return Sprite(int(low[0]), int(low[1]), rgb, rgba[:, :, 3].copy())


def _shrunk(image: Image, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _fixed(
    parts: Sequence[Part], matrix: NDArray[np.float64], low: NDArray[np.int_], fine: int
) -> list[list[NDArray[np.int32]]]:
    """The outlines, then the holes, of each part in the raster's fixed-point coordinates."""
    scale = fine * (1 << _SHIFT)
    shift = np.array([[scale, 0, -scale * low[0]], [0, scale, -scale * low[1]], [0, 0, 1]])
    lines = [p for part in parts for p in (*part.outlines, *part.holes)]
    whole = iter([np.round(p).astype(np.int32) for p in project(lines, shift @ matrix)[1]])
    return [[next(whole) for _ in (*part.outlines, *part.holes)] for part in parts]


def _unit(matrix: NDArray[np.float64]) -> float:
    """Scene pixels per unit of the drawing."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))) / abs(matrix[2, 2]))


def _rasterise(
    parts: Sequence[Part], fixed: list[list[NDArray[np.int32]]], shape: tuple[int, int], unit: float
) -> tuple[Image, Image, Image]:
    """Which part is seen where (0 none), where no edge is (255), and the seams (dark below 255)."""
    seen, edge = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    seam = np.full(shape, 255, np.uint8)
    for number, (part, lines) in enumerate(zip(parts, fixed, strict=True), start=1):
        count = len(part.outlines)
        fills = [[lines[0], *lines[count:]], *([p] for p in lines[1:count])]
        if part.lift > 0 and not part.decal:
            thick = max(1, round(2 * part.lift * unit))
            cv2.polylines(seam, lines, True, 150, thick, cv2.LINE_8, _SHIFT)
        if not part.decal:
            # A ring just outside: edges inside a union of outlines are filled over again.
            if part.turned:
                cv2.polylines(edge, _along(part, lines), False, 0, 3, cv2.LINE_8, _SHIFT)
            else:
                cv2.polylines(edge, lines, True, 0, 3, cv2.LINE_8, _SHIFT)
        for fill in fills:
            cv2.fillPoly(seen, fill, number, cv2.LINE_8, _SHIFT)
            if not part.decal:
                cv2.fillPoly(edge, fill, 255, cv2.LINE_8, _SHIFT)
                cv2.fillPoly(seam, fill, 255, cv2.LINE_8, _SHIFT)
    return seen, edge, seam


def _along(part: Part, lines: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """The spans of a part's outlines that run along the drawing's x axis more than across it."""
    spans = []
    for drawn, fixed in zip(part.outlines, lines, strict=False):
        step = np.abs(np.roll(drawn, -1, axis=0) - drawn)
        pairs = np.stack([fixed, np.roll(fixed, -1, axis=0)], axis=1)
        spans += list(pairs[step[:, 0] > step[:, 1]])
    return spans


def _slopes(
    parts: Sequence[Part], seen: Image, edge: Image, unit: float, light: tuple[float, float]
) -> NDArray[np.float32]:
    """(H, W) float32, how far each pixel leans towards the light, -1..1."""
    # The stairs of a slanting edge would show as ripples on its bevel: smooth them away.
    side = 2 * int(np.clip(unit / 260, 2, 5)) + 1
    inside = cv2.blur(cv2.distanceTransform(edge, cv2.DIST_L2, 5), (side, side))
    radius = np.ones(256, np.float32)
    bevel = 0.01
    for number, part in enumerate(parts, start=1):
        # A decal takes the bevel of the piece below; the nearest earlier piece is that one.
        bevel = bevel if part.decal else part.bevel
        radius[number] = 1 / max(bevel * unit, 1.0)
    lean = np.asarray(cv2.multiply(inside, cv2.LUT(seen, radius)), dtype=np.float32)
    np.minimum(lean, 1, out=lean)
    lean *= 1.5 - 0.5 * lean  # a little flatter on top than a circle: hides creases of tapers
    lean -= 1
    x, y = light
    kernel = np.array(
        [[-x - y, -2 * y, x - y], [-2 * x, 0, 2 * x], [-x + y, 2 * y, x + y]], np.float32
    )
    lean *= np.asarray(cv2.filter2D(inside, cv2.CV_32F, kernel / 8), dtype=np.float32)
    return lean


def _tables(parts: Sequence[Part]) -> NDArray[np.uint32]:
    """(256 * (parts + 1),) uint32: RGBA packed, by part number and slope; part 0 is nothing."""
    table = np.zeros((len(parts) + 1, 256, 4), np.uint8)
    table[1:, :, 3] = 255
    for number, part in enumerate(parts, start=1):
        table[number, :, :3] = part.material.table()
    return table.reshape(-1, 4).view(np.uint32).ravel()
