"""Training samples of the segmenter: one object, its frame resampled, and its mask."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import enlarge
from tk.runtime.preprocess import Image
from tk.train.scenes.store import Picture, SmallMask
from tk.train.scenes.warp import Affine, compose, recolour, warp
from tk.train.segmenter.config import SegmenterConfig
from tk.train.segmenter.model import CROP, PAD, SIDE


def make_sample(
    picture: Picture, config: SegmenterConfig, rng: np.random.Generator
) -> tuple[Image, NDArray[np.uint8]]:
    """Take a random object of a picture, in a jittered frame, turned by quarters and mirrored.

    Args:
        picture: with at least one mask.

    Returns:
        crop: (128, 128, 3) uint8 RGB and mask: (64, 64) uint8, 0..255, share of the cell covered.
    """
    masked = [index for index, mask in enumerate(picture.masks) if mask is not None]
    chosen = masked[int(rng.integers(len(masked)))]
    mask = picture.masks[chosen]
    assert mask is not None
    frame = enlarge(_jitter(_box(picture, chosen), config.jitter, rng)[None], config.margin)[0]
    crop, target = cut_frame(picture.image, frame), cut_mask(mask, frame)
    # Quarter turns and mirroring move pixels without blurring them, unlike any other angle.
    turns, mirrored = int(rng.integers(4)), bool(rng.random() < 0.5)
    crop, target = np.rot90(crop, turns), np.rot90(target, turns)
    if mirrored:
        crop, target = crop[:, ::-1], target[:, ::-1]
    crop = np.ascontiguousarray(crop)
    if config.colour:
        crop = recolour(crop, rng, config.colour)
    return crop, np.ascontiguousarray(target)


def cut_frame(image: Image, frame: NDArray[np.float32]) -> Image:
    """Resample a frame of an image to (128, 128, 3), four samples per pixel.

    Args:
        image: (H, W, 3) uint8 RGB.
        frame: (4,) float32 xyxy, image pixels; grey outside the image.
    """
    double = warp(image, _to_frame(frame, 2 * CROP), 2 * CROP, 2 * CROP, round(PAD))
    return np.asarray(cv2.resize(double, (CROP, CROP), interpolation=cv2.INTER_AREA), np.uint8)


def cut_mask(mask: SmallMask, frame: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Resample a mask to the (64, 64) cells of a frame; values 0..255."""
    placed = np.array([[1.0, 0.0, mask.x], [0.0, 1.0, mask.y]])
    double = warp(mask.pixels, compose(_to_frame(frame, CROP), placed), CROP, CROP, 0)
    return np.asarray(cv2.resize(double, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _to_frame(frame: NDArray[np.float32], side: int) -> Affine:
    x, y = side / np.maximum(frame[2:] - frame[:2], 1e-3).astype(np.float64)
    return np.array([[x, 0.0, -x * frame[0]], [0.0, y, -y * frame[1]]])


def _box(picture: Picture, index: int) -> NDArray[np.float32]:
    points = picture.outlines[index]
    return np.asarray([*points.min(axis=0), *points.max(axis=0)], np.float32)


def _jitter(box: NDArray[np.float32], most: float, rng: np.random.Generator) -> NDArray[np.float32]:
    # Some boxes nearly right, some as wrong as a detector's.
    sides = np.tile(box[2:] - box[:2], 2)
    return np.asarray(box + sides * rng.uniform(0, most) * rng.uniform(-1, 1, 4), np.float32)
