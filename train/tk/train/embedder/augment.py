"""From a crop to a training canvas: the only module that knows albumentations.

Geometry is one warp, because only so can an object be turned *before* it is cut: a turned tool
gets the tight box that a detector would give it, and nothing of it is lost. Colour, noise and
dropout are albumentations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.preprocess import CropSpec, Image, ImageSpec, apply_mask, fit
from tk.train.embedder.data import Picture, cut_picture

Strength = Literal["none", "light", "tools"]

ROOM = 1.25
"""Pictures are kept this much larger than the canvas: turning makes some of them grow again."""


@dataclass(frozen=True)
class _Geometry:
    """Ranges of the warp.

    Attributes:
        angle: degrees either way.
        flip: probability of a mirror image.
        margin, shift: most that the box is off, as a share of its longer side.
        blur: most that the outline of a mask is smoothed, as a share of the canvas.
        error: most standard deviation of a smooth field that is added to a mask of 0..255 before
            it is thresholded: parts go missing and surroundings come in, as with a segmenter.
    """

    angle: float
    flip: float
    margin: float
    shift: float
    blur: float
    error: float


_GEOMETRY = {
    "light": _Geometry(angle=10, flip=0.0, margin=0.05, shift=0.03, blur=0.01, error=0),
    "tools": _Geometry(angle=180, flip=0.5, margin=0.05, shift=0.03, blur=0.03, error=70),
}


def shrink(picture: Picture, size: int) -> Picture:
    """Make a picture just larger than a canvas of `size` pixels, to keep many of them in memory."""
    height, width = picture.image.shape[:2]
    scale = size * ROOM / max(height, width)
    if scale >= 1:
        return picture
    to = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(cv2.resize(picture.image, to, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.mask is None:
        return Picture(image, None)
    soft = cv2.resize(picture.mask.astype(np.uint8) * 255, to, interpolation=cv2.INTER_AREA)
    mask = soft > 127
    return Picture(image, mask if mask.any() else soft > 0)


class Augment:
    """Turns pictures into training canvases; equal generators give equal canvases.

    Args:
        strength: `none` (what evaluation sees), `light` (keeps orientation) or `tools` (any angle).
        image_spec: the canvas, square.
        crop_spec: margin and fill colour; its background counts when `mask_share` is 0 or 1.
        mask_share: probability that the background is painted over, for pictures with a mask.
    """

    def __init__(
        self, strength: Strength, image_spec: ImageSpec, crop_spec: CropSpec, mask_share: float
    ) -> None:
        self.strength, self.image_spec, self.crop_spec = strength, image_spec, crop_spec
        self.mask_share = mask_share
        self.colour = _colour(strength, crop_spec.fill)
        self.dropout = _dropout(strength, crop_spec.fill)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Image:
        """Make one canvas: (size, size, 3) uint8 RGB."""
        masked = picture.mask is not None and rng.random() < self.mask_share
        if self.strength == "none":
            spec = CropSpec(
                self.crop_spec.margin, "mask" if masked else "keep", self.crop_spec.fill
            )
            return fit(self.image_spec, cut_picture(picture, spec))[0]
        canvas, inside = self._warp(picture, masked, _GEOMETRY[self.strength], rng)
        both = _apply(self.colour, rng, image=canvas, mask=inside)
        # Painted after the colours: padding and background are this exact grey at run time too.
        painted = apply_mask(both["image"], both["mask"] > 0, self.crop_spec)
        return np.ascontiguousarray(_apply(self.dropout, rng, image=painted)["image"], np.uint8)

    def _warp(
        self, picture: Picture, masked: bool, ranges: _Geometry, rng: np.random.Generator
    ) -> tuple[Image, NDArray[np.uint8]]:
        """Turn, flip, scale and shift in one step.

        Returns:
            canvas, and inside: (size, size) uint8, 1 where the canvas is object (masked) or crop.
        """
        size = self.image_spec.height
        angle = np.deg2rad(rng.uniform(-ranges.angle, ranges.angle))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if rng.random() < ranges.flip:
            turn[:, 0] = -turn[:, 0]
        low, high = _extent(picture, turn, rng)
        margin = 1.0
        if picture.mask is not None:
            margin += 2 * max(0.0, self.crop_spec.margin + rng.uniform(-1, 1) * ranges.margin)
        else:
            margin += rng.uniform(-1, 1) * ranges.margin
        longer = max(high - low)
        scale = size / (longer * margin)
        shift = rng.uniform(-ranges.shift, ranges.shift, 2) * size
        offset = size / 2 + shift - scale * (low + high) / 2
        # OpenCV counts from the middle of pixels, all else here from their edges.
        offset += turn @ (0.5, 0.5) * scale - 0.5
        matrix = np.hstack([turn * scale, offset[:, None]])
        canvas = _warp_affine(picture.image, matrix, size, cv2.BORDER_REPLICATE)
        if masked and picture.mask is not None:
            mask = _warp_affine(picture.mask.astype(np.uint8) * 255, matrix, size)
            return canvas, _imperfect(mask, ranges.blur * size, ranges.error, rng)
        whole = np.ones(picture.image.shape[:2], np.uint8)
        inside = np.asarray(
            cv2.warpAffine(whole, matrix, (size, size), flags=cv2.INTER_NEAREST), np.uint8
        )
        half = ((high - low) + longer * (margin - 1)) / 2 * scale
        _clear_outside(inside, size / 2 + shift - half, size / 2 + shift + half)
        return canvas, inside


def _extent(
    picture: Picture, turn: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners (x, y) of the box around the turned object, relative to the turned origin."""
    if picture.mask is not None:
        contours, _ = cv2.findContours(
            picture.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        points = (np.concatenate(contours)[:, 0] + 0.5) @ turn.T
        return points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
    height, width = picture.image.shape[:2]
    centre = turn @ (width / 2, height / 2)
    # The object may fill the crop to its corners or only the ellipse in it: anything between.
    rectangle = np.abs(turn) @ (width / 2, height / 2)
    ellipse = np.sqrt(turn**2 @ ((width / 2) ** 2, (height / 2) ** 2))
    half = ellipse + rng.random() * (rectangle - ellipse)
    return centre - half, centre + half


def _imperfect(
    mask: NDArray[np.uint8], blur: float, error: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Make a mask as a segmenter does: round outlines, missing parts, bits too many: 0 or 1."""
    sigma, threshold = rng.uniform(0.3, max(0.3, blur)), rng.uniform(64, 160)
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), sigma), np.float32)
    if error:
        grid = rng.normal(0, rng.uniform(0, error), (7, 7)).astype(np.float32)
        height, width = mask.shape
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        soft = np.asarray(soft + field, np.float32)
    kept = soft > threshold
    return np.asarray(kept if kept.any() else mask > 127, np.uint8)


def _warp_affine(
    image: NDArray[Any],
    matrix: NDArray[np.float64],
    size: int,
    border: int = cv2.BORDER_CONSTANT,
) -> Any:
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


def _clear_outside(
    inside: NDArray[np.uint8], low: NDArray[np.float64], high: NDArray[np.float64]
) -> None:
    """Zero `inside` beyond the box low..high (x, y): there a letterbox has padding."""
    x0, y0 = (max(0, int(value)) for value in np.floor(low))
    x1, y1 = (max(0, int(value)) for value in np.ceil(high))
    inside[:y0] = inside[y1:] = 0
    inside[:, :x0] = inside[:, x1:] = 0


def _colour(strength: Strength, fill: tuple[int, int, int]) -> A.Compose | None:
    if strength == "none":
        return None
    if strength == "light":
        return A.Compose([A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.02, 0.02), p=0.5)])
    return A.Compose(
        [
            A.Perspective((0.02, 0.06), fill=fill, p=0.2),
            A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=0.7),
            A.RandomGamma((80, 120), p=0.3),
            A.CLAHE((1, 3), p=0.1),
            A.GaussNoise((0.01, 0.04), p=0.2),
            A.MotionBlur((3, 3), p=0.1),
            A.ImageCompression("jpeg", (60, 95), p=0.2),
        ]
    )


def _dropout(strength: Strength, fill: tuple[int, int, int]) -> A.Compose | None:
    if strength != "tools":
        return None
    return A.Compose([A.CoarseDropout((1, 3), (0.08, 0.2), (0.08, 0.2), fill=fill, p=0.3)])


def _apply(compose: A.Compose | None, rng: np.random.Generator, **targets: Any) -> dict[str, Any]:
    """Run a pipeline on numbers drawn from `rng` alone."""
    if compose is None:
        return targets
    # `set_random_seed` would give every transform the same numbers.
    compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    result: dict[str, Any] = compose(**targets)
    return result
