"""Training samples of the segmenter: windows of scenes, with jittered boxes and their masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import enlarge
from tk.runtime.preprocess import Image
from tk.train.scenes.store import Picture, SmallMask
from tk.train.scenes.warp import Affine, compose, recolour, view, warp, warped_boxes

LEAST_VISIBLE = 0.6
"""An object with a smaller share of its box inside the window is not asked for."""
LARGEST = 0.9
"""Longest side of the chosen object, as a share of the window."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WindowKind:
    """How windows are drawn.

    Attributes:
        window: side in pixels.
        boxes: most objects per window.
        margin: of the frame around a box, as a share of its longer side.
        side: logits per side of a mask.
        jitter: largest shift of a box side, as a share of the box's width or height.
        rotate: largest turn to either side, degrees.
        scale: largest factor of size, either way.
        colour: strength of colour changes, 0..1.
        pad: grey value around the picture, 0..255.
    """

    window: int
    boxes: int
    margin: float
    side: int
    jitter: float
    rotate: float
    scale: float
    colour: float
    pad: int = 114


def make_window(
    picture: Picture, fitting: float, kind: WindowKind, rng: np.random.Generator
) -> tuple[Image, Floats, NDArray[np.uint8]]:
    """Draw one window around a random object of the picture.

    Args:
        picture: with at least one mask.
        fitting: factor from the picture to the canvas.

    Returns:
        image: (window, window, 3) uint8 RGB, boxes: (N, 4) float32 xyxy in window pixels,
        masks: (N, side, side) uint8 0..255 in the frames of the boxes.
    """
    masked = [index for index, mask in enumerate(picture.masks) if mask is not None]
    chosen = masked[int(rng.integers(len(masked)))]
    affine = _window_view(picture.outlines[chosen], fitting, kind, rng)
    image = warp(picture.image, affine, kind.window, kind.window, kind.pad)
    if kind.colour:
        image = recolour(image, rng, kind.colour)
    outlines = [picture.outlines[index] for index in masked]
    boxes, visible = warped_boxes(outlines, affine, kind.window, kind.window)
    visible[masked.index(chosen)] = 1.0  # its centre is inside: a window is never without a box
    kept = np.flatnonzero(visible >= LEAST_VISIBLE)
    kept = rng.permutation(kept)[: kind.boxes]
    boxes = _jitter(boxes[kept], kind, rng)
    frames = enlarge(boxes, kind.margin)
    masks = np.zeros((len(kept), kind.side, kind.side), np.uint8)
    for row, index in enumerate(kept):
        small = picture.masks[masked[index]]
        assert small is not None
        masks[row] = mask_in_frame(small, affine, frames[row], kind.side)
    return image, boxes, masks


def _window_view(
    points: Floats, fitting: float, kind: WindowKind, rng: np.random.Generator
) -> Affine:
    low, high = points.min(axis=0), points.max(axis=0)
    spread = math.log(kind.scale)
    scale = fitting * math.exp(rng.uniform(-spread, spread))
    # An object larger than the window is shrunk; its frame looks the same at any scale.
    scale = min(scale, LARGEST * kind.window / float((high - low).max()))
    place = kind.window * (0.5 + rng.uniform(-0.2, 0.2, 2))
    degrees = rng.uniform(-kind.rotate, kind.rotate)
    centre = (low + high) / 2
    mirror = bool(rng.random() < 0.5)
    return view((float(centre[0]), float(centre[1])), (place[0], place[1]), scale, degrees, mirror)


def _jitter(boxes: Floats, kind: WindowKind, rng: np.random.Generator) -> Floats:
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # Half of the boxes nearly right, half as wrong as a detector's.
    amount = rng.uniform(0, kind.jitter, (len(boxes), 1))
    moved = boxes + sides * amount * rng.uniform(-1, 1, boxes.shape)
    return np.clip(moved, 0, kind.window).astype(np.float32)


def mask_in_frame(mask: SmallMask, affine: Affine, frame: Floats, side: int) -> NDArray[np.uint8]:
    """Resample a mask of the picture into a frame of the window.

    Args:
        affine: from the picture to the window.
        frame: (4,) float32 xyxy, window pixels.

    Returns:
        (side, side) uint8, 0..255.
    """
    placed = compose(affine, np.array([[1.0, 0.0, mask.x], [0.0, 1.0, mask.y]]))
    x, y = side / np.maximum(frame[2:] - frame[:2], 1e-3).astype(np.float64)
    framing = np.array([[x, 0.0, -x * frame[0]], [0.0, y, -y * frame[1]]])
    return warp(mask.pixels, compose(framing, placed), side, side, 0)
