"""Strokes and blobs that marks and defects are drawn with."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.train.data.steel.layout import HEIGHT, WIDTH
from tk.train.data.steel.plate import SHAPE, Field
from tk.train.data.synth.backgrounds import noise

_SHIFT = 4
"""Bits of a pixel's fraction in OpenCV's coordinates."""
Points = NDArray[np.float64]


def stroke(points: Points, width: float) -> tuple[NDArray[np.uint8], tuple[slice, slice]] | None:
    """A smooth line and the window that it lies in.

    Args:
        points: (P, 2) float64, x and y, pixels; may leave the strip.
        width: pixels; below 1 the line is fainter.

    Returns:
        (h, w) uint8 coverage and the rows and columns it belongs to; None outside the strip.
    """
    pad = int(width) + 4
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - pad, 0).tolist()
    x1, y1 = (np.ceil(points.max(axis=0)).astype(int) + pad).tolist()
    x1, y1 = min(x1, WIDTH), min(y1, HEIGHT)
    if x0 >= x1 or y0 >= y1:
        return None
    cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
    fixed = np.rint((points - (x0, y0)) * (1 << _SHIFT)).astype(np.int32)
    value = round(255 * min(1.0, width))
    cv2.polylines(cover, [fixed], False, value, max(1, round(width)), cv2.LINE_AA, _SHIFT)
    return cover, (slice(y0, y1), slice(x0, x1))


def add_line(gain: Field, points: Points, width: float, strength: float) -> None:
    """Brighten (or darken, below 0) along a line, in place; `strength` is a share of the level."""
    drawn = stroke(points, width)
    if drawn is not None:
        cover, where = drawn
        gain[where] *= 1 + cover.astype(np.float32) * np.float32(strength / 255)


def blob(
    rng: np.random.Generator,
    centre: tuple[float, float],
    size: tuple[float, float],
    cells: tuple[int, int],
) -> Field:
    """An irregular spot: an ellipse whose edge random values push in and out.

    Args:
        centre: x and y, pixels.
        size: width and height of the ellipse, pixels.
        cells: rows and columns of random values over the strip; more of them, more ragged.

    Returns:
        (H, W) float32, 0 or 1.
    """
    x = (np.arange(WIDTH, dtype=np.float32)[None] - np.float32(centre[0])) / np.float32(size[0] / 2)
    y = (np.arange(HEIGHT, dtype=np.float32)[:, None] - np.float32(centre[1])) / np.float32(
        size[1] / 2
    )
    ragged = np.float32(0.55) * noise(rng, SHAPE, cells)
    ragged += np.float32(0.3) * noise(rng, SHAPE, (3 * cells[0], 3 * cells[1]))
    return (x * x + y * y < 1 + ragged).astype(np.float32)


def around(drawn: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """The outline that a person draws round what belongs together: grown, gaps closed.

    Args:
        drawn: (H, W) bool, pixels of the defect.
        margin: pixels that the outline keeps away; gaps of up to four times as much are closed.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    # Grown in a frame, for closing would else treat the strip's edge as if the defect went on.
    pad = 4 * margin
    framed = np.pad(drawn.astype(np.uint8), pad)
    grown = cv2.dilate(framed, disc)
    closed = cv2.erode(cv2.dilate(grown, disc), disc)
    return closed[pad:-pad, pad:-pad] > 0
