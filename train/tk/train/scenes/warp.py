"""Random views of a picture by one affine warp, and what becomes of the boxes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.preprocess import Image

Affine = NDArray[np.float64]
"""(2, 3): new = matrix @ (x, y, 1), in pixel-edge coordinates."""


def view(
    centre: tuple[float, float],
    place: tuple[float, float],
    scale: float,
    degrees: float,
    mirror: bool,
) -> Affine:
    """Affine that turns and scales about `centre` of the picture and puts it at `place`."""
    angle = math.radians(degrees)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[a, -b], [b, a]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    offset = np.asarray(place) - linear @ np.asarray(centre)
    return np.column_stack([linear, offset])


def compose(outer: Affine, inner: Affine) -> Affine:
    """The affine that applies `inner` first."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def warp(
    image: NDArray[np.uint8], affine: Affine, height: int, width: int, pad: int
) -> NDArray[np.uint8]:
    """Resample `image` bilinearly; outside it is `pad`."""
    # cv2 counts from pixel centres, affines here from pixel edges.
    shift = np.column_stack([np.eye(2), [0.5, 0.5]])
    unshift = np.column_stack([np.eye(2), [-0.5, -0.5]])
    matrix = compose(unshift, compose(affine, shift))
    border = (pad, pad, pad) if image.ndim == 3 else pad
    warped = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=border,
    )  # fmt: skip
    return np.asarray(warped, np.uint8)


def warped_boxes(
    outlines: Sequence[NDArray[np.float32]], affine: Affine, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tight boxes of outlines after the warp, cut to the window.

    Returns:
        boxes: (N, 4) float32 xyxy, and visible: (N,) float32, the share of each box's area that
        lies in the window.
    """
    boxes = np.zeros((len(outlines), 4), np.float32)
    for row, points in zip(boxes, outlines, strict=True):
        moved = points @ affine[:, :2].T + affine[:, 2]
        row[:2], row[2:] = moved.min(axis=0), moved.max(axis=0)
    cut = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    visible = _area(cut) / np.maximum(_area(boxes), 1e-6)
    return cut, visible.astype(np.float32)


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides[:, 0] * sides[:, 1], np.float32)


_NOISE = np.random.default_rng(0).standard_normal((1024, 1024, 3)).astype(np.float32)


def recolour(image: Image, rng: np.random.Generator, strength: float = 1.0) -> Image:
    """Change brightness, contrast, tint and gamma, then sometimes blur and add noise.

    Args:
        image: (H, W, 3) uint8 RGB.
        strength: 0 leaves the colours, 1 is the usual amount.
    """
    gain = 1 + strength * (rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, 3))
    bias = strength * rng.uniform(-0.1, 0.1)
    gamma = math.exp(strength * rng.uniform(-0.25, 0.25))
    ramp = (np.arange(256) / 255.0) ** gamma
    table = np.clip(255 * (ramp[:, None] * gain + bias), 0, 255).astype(np.uint8)
    image = np.asarray(cv2.LUT(image, table[:, None, :]), np.uint8)
    if rng.random() < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 1.0)), np.uint8)
    if rng.random() < 0.5:
        image = _add_noise(image, rng, strength * rng.uniform(1.0, 8.0))
    return image


def _add_noise(image: Image, rng: np.random.Generator, sigma: float) -> Image:
    # Drawing a fresh normal for every pixel would cost more than the warp: cut from a stock.
    h, w = image.shape[:2]
    if h > len(_NOISE) or w > len(_NOISE):
        return image
    y, x = rng.integers(0, len(_NOISE) - h + 1), rng.integers(0, len(_NOISE) - w + 1)
    noisy = image + _NOISE[y : y + h, x : x + w] * np.float32(sigma)
    return np.clip(noisy, 0, 255).astype(np.uint8)
