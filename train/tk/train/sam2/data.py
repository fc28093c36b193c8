"""Training samples of SAM-2: a canvas, boxes of some of its objects, and their masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.train.sam2.config import Sam2Config
from tk.train.scenes.coco import Scene, mask_of, outline
from tk.train.scenes.store import Picture, SmallMask, Store
from tk.train.scenes.warp import Affine, compose, recolour, view, warp, warped_boxes

VISIBLE = 0.5
"""Objects of which less is left in the picture after warping are not asked for."""
LEAST = 2.0
"""Shortest side of a box that is asked for, canvas pixels."""
PAD = 114


@dataclass(frozen=True, eq=False)
class CanvasPicture(Picture):
    """A scene on the canvas that the network sees, stretched to it; every object has a mask.

    Attributes:
        hw: height and width of the picture before it was stretched, pixels.
    """

    hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its prompts.

    Attributes:
        canvas: (S, S, 3) uint8 RGB.
        boxes: (K, 4) float32 xyxy, canvas pixels.
        masks: (K, T, T) uint8, 0..255: share of each cell that the object covers.
    """

    canvas: Image
    boxes: NDArray[np.float32]
    masks: NDArray[np.uint8]


class CanvasStore(Store):
    """Pictures as the runtime fits them to the canvas of `spec`; those without a mask count as
    `skipped`, like those that cannot be read."""  # fmt: skip

    def __init__(self, scenes: list[Scene] | tuple[Scene, ...], spec: ImageSpec, ram: int) -> None:
        self.spec = spec
        super().__init__(scenes, spec.width, ram=ram, with_masks=True)

    def __getitem__(self, index: int) -> CanvasPicture:
        picture = super().__getitem__(index)
        assert isinstance(picture, CanvasPicture)
        return picture

    def _try_read(self, scene: Scene) -> CanvasPicture | None:
        try:
            picture = read_canvas(scene, self.spec)
        except TkError:
            return None
        return picture if len(picture.masks) else None


def read_canvas(scene: Scene, spec: ImageSpec) -> CanvasPicture:
    """Read one scene; its objects are those with a mask.

    Args:
        spec: of mode `stretch`.

    Raises:
        TkError: the image cannot be read, or is not of the annotated size.
    """
    full = read_image(scene.path)
    height, width = full.shape[:2]
    if (height, width) != (scene.height, scene.width):
        raise TkError(
            f"{scene.path.name} is not of the size in the annotations",
            expected=f"{scene.height}x{scene.width}",
            found=f"{height}x{width}",
        )
    canvas, placement = fit(spec, full)
    labels: list[int] = []
    outlines: list[NDArray[np.float32]] = []
    masks: list[SmallMask] = []
    for thing in scene.things:
        mask = mask_of(thing, height, width)
        if mask is None or not mask.any():
            continue
        labels.append(thing.label)
        outlines.append(outline(mask, thing.box) * np.asarray(placement.scale, np.float32))
        masks.append(_small_mask(mask, outlines[-1], spec))
    return CanvasPicture(
        canvas, np.array(labels, np.int64), tuple(outlines), tuple(masks), (height, width)
    )


def _small_mask(mask: NDArray[np.bool_], points: NDArray[np.float32], spec: ImageSpec) -> SmallMask:
    w, h = spec.width, spec.height
    whole = cv2.resize(mask.astype(np.uint8) * 255, (w, h), interpolation=cv2.INTER_AREA)
    # Growing a mask blurs its edge over a neighbouring pixel.
    x0, y0 = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, (w - 1, h - 1))
    x1, y1 = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, (x0 + 1, y0 + 1), (w, h))
    return SmallMask(np.ascontiguousarray(whole[y0:y1, x0:x1]), int(x0), int(y0))


def make_sample(
    picture: CanvasPicture, config: Sam2Config, side: int, rng: np.random.Generator
) -> Sample:
    """Take some objects of a picture, mirrored, turned, zoomed and recoloured at random.

    Args:
        side: cells per side of a mask.
    """
    height, width = picture.image.shape[:2]
    mirror = bool(rng.random() < 0.5)
    affine = mirrored(width) if mirror else np.eye(2, 3)
    chosen, boxes = _candidates(picture, affine)
    if rng.random() < config.warped:
        turned = _random_view(picture, config, mirror, rng)
        seen, theirs = _candidates(picture, turned)
        if len(seen):
            affine, chosen, boxes = turned, seen, theirs
    # Too few objects: some are asked for again, with another error of the box.
    rows = np.resize(rng.permutation(len(chosen)), config.objects)
    canvas = warp(picture.image, affine, height, width, PAD)
    asked = [_prompt(picture, int(chosen[row]), boxes[row], affine) for row in rows]
    if config.colour:
        canvas = recolour(canvas, rng, config.colour)
    cells = [cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA) for _, mask in asked]
    jittered = np.stack([_jitter(box, config.jitter, rng) for box, _ in asked])
    limits = np.array([width, height, width, height], np.float32)
    return Sample(canvas, np.clip(jittered, 0, limits), np.stack(cells).astype(np.uint8))


def mirrored(width: int) -> Affine:
    """Left for right."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]])


def _candidates(
    picture: CanvasPicture, affine: Affine
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Objects to ask for, and their boxes (N, 4) on the warped canvas."""
    height, width = picture.image.shape[:2]
    boxes, visible = warped_boxes(picture.outlines, affine, height, width)
    good = visible >= VISIBLE
    large = good & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= LEAST)
    # A picture of nothing but specks still has to give a sample.
    kept = np.flatnonzero(large if large.any() else good)
    return kept, boxes[kept]


def _random_view(
    picture: CanvasPicture, config: Sam2Config, mirror: bool, rng: np.random.Generator
) -> Affine:
    """Turn and zoom the picture as it was before it was stretched, then stretch it again."""
    canvas_height, canvas_width = picture.image.shape[:2]
    height, width = picture.hw
    scale = float(np.exp(rng.uniform(-1, 1) * np.log(config.zoom)))
    degrees = float(rng.uniform(-1, 1)) * config.turn
    # Enlarged, the window moves over the picture; shrunk, the picture moves in the window.
    room = abs(scale - 1) / 2
    shift = rng.uniform(-room, room, 2) * (width, height)
    centre = (width / 2, height / 2)
    place = (centre[0] + float(shift[0]), centre[1] + float(shift[1]))
    x, y = canvas_width / width, canvas_height / height
    stretch = np.array([[x, 0.0, 0.0], [0.0, y, 0.0]])
    unstretch = np.array([[1 / x, 0.0, 0.0], [0.0, 1 / y, 0.0]])
    return compose(stretch, compose(view(centre, place, scale, degrees, mirror), unstretch))


def _prompt(
    picture: CanvasPicture, index: int, box: NDArray[np.float32], affine: Affine
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Tight box (4,) of an object on the warped canvas, and its mask there, (H, W) 0..255.

    Args:
        box: (4,) float32 xyxy, of its outline, cut to the canvas.
    """
    height, width = picture.image.shape[:2]
    mask = picture.masks[index]
    assert mask is not None
    placed = np.array([[1.0, 0.0, mask.x], [0.0, 1.0, mask.y]])
    whole = warp(mask.pixels, compose(affine, placed), height, width, 0)
    if box.min() > 0 and box[2] < width and box[3] < height:
        return box, whole
    # The convex outline, cut by the edge of the canvas, may reach further than what is left.
    x, y, w, h = cv2.boundingRect((whole > 127).astype(np.uint8))
    return (np.array([x, y, x + w, y + h], np.float32) if w and h else box), whole


def _jitter(box: NDArray[np.float32], most: float, rng: np.random.Generator) -> NDArray[np.float32]:
    # Some boxes nearly right, some as wrong as a detector's.
    sides = np.tile(box[2:] - box[:2], 2)
    return np.asarray(box + sides * rng.uniform(0, most) * rng.uniform(-1, 1, 4), np.float32)
