"""Training samples of the detector: random views of annotated scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.runtime.preprocess import Image, ImageSpec
from tk.train.scenes.store import Picture
from tk.train.scenes.warp import Affine, recolour, view, warp, warped_boxes

SHIFT = 0.15
"""Largest random shift, as a share of the canvas."""
LEAST_VISIBLE = 0.4
"""An object with a smaller share of its box inside the canvas is background."""


@dataclass(frozen=True)
class Augmentation:
    """How much a view may differ.

    Attributes:
        rotate: largest turn to either side, degrees.
        scale: largest factor of size, either way; 1 keeps it.
        colour: strength of colour changes, 0..1.
        mirror: whether left and right may be swapped.
    """

    rotate: float
    scale: float
    colour: float
    mirror: bool


def random_view(
    picture: Picture, spec: ImageSpec, kind: Augmentation, rng: np.random.Generator
) -> Affine:
    """Draw an affine from the picture to the canvas."""
    height, width = picture.image.shape[:2]
    fitting = min(spec.width / width, spec.height / height)
    spread = math.log(kind.scale)
    scale = fitting * math.exp(rng.uniform(-spread, spread))
    shift = rng.uniform(-SHIFT, SHIFT, 2)
    place = (spec.width * (0.5 + shift[0]), spec.height * (0.5 + shift[1]))
    degrees = rng.uniform(-kind.rotate, kind.rotate)
    mirror = kind.mirror and rng.random() < 0.5
    return view((width / 2, height / 2), place, scale, degrees, mirror)


def make_sample(
    picture: Picture, spec: ImageSpec, kind: Augmentation, rng: np.random.Generator
) -> tuple[Image, NDArray[np.float32], NDArray[np.int64]]:
    """Make one view.

    Returns:
        image: (spec.height, spec.width, 3) uint8 RGB, boxes: (N, 4) float32 xyxy in canvas pixels,
        labels: (N,) int64.
    """
    affine = random_view(picture, spec, kind, rng)
    image = warp(picture.image, affine, spec.height, spec.width, spec.pad)
    if kind.colour:
        image = recolour(image, rng, kind.colour)
    boxes, visible = warped_boxes(picture.outlines, affine, spec.height, spec.width)
    kept = visible >= LEAST_VISIBLE
    return image, boxes[kept], picture.labels[kept]
