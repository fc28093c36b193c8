"""Scenes in memory: images decoded once and kept small, objects as outlines and small masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.train.scenes.coco import Scene, mask_of, outline

RAM_BYTES = 2 << 30
"""Images are kept up to this many bytes; the others are decoded every time."""


@dataclass(frozen=True, eq=False)
class SmallMask:
    """A mask cut to its object.

    Attributes:
        pixels: (h, w) uint8, 0..255: share of the pixel that the object covers.
        x, y: top-left corner in the picture, pixels.
    """

    pixels: NDArray[np.uint8]
    x: int
    y: int


@dataclass(frozen=True, eq=False)
class Picture:
    """A scene at the size it is trained at.

    Attributes:
        image: (H, W, 3) uint8 RGB, the picture alone without padding.
        labels: (N,) int64 class indices.
        outlines: per object (P, 2) float32 convex corners, pixel-edge coordinates of `image`.
        masks: per object its mask, None when only the box is known.
    """

    image: Image
    labels: NDArray[np.int64]
    outlines: tuple[NDArray[np.float32], ...]
    masks: tuple[SmallMask | None, ...]


class Store:
    """Pictures by index; images that cannot be read are left out and counted in `skipped`.

    Args:
        scenes: what to hold.
        side: the longer side of a picture in pixels; smaller images are kept as they are.
        ram: bound of what is kept, bytes. Images beyond it are read when asked for; a broken one
            among them is then replaced by the next.
        with_masks: keep the masks too.
        threads: of decoding.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        side: int,
        *,
        ram: int = RAM_BYTES,
        with_masks: bool = False,
        threads: int = 2,
    ) -> None:
        self.side, self.with_masks = side, with_masks
        self.skipped = 0
        self._kept: list[Picture] = []
        self._later: list[Scene] = []
        used = 0
        # Decoding in blocks, so that reading stops soon after the bound is reached.
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(scenes), 64):
                block = scenes[start : start + 64]
                if used >= ram:
                    self._later.extend(block)
                    continue
                for picture in pool.map(self._try_read, block):
                    if picture is None:
                        self.skipped += 1
                    else:
                        self._kept.append(picture)
                        used += picture.image.nbytes

    def __len__(self) -> int:
        return len(self._kept) + len(self._later)

    def __getitem__(self, index: int) -> Picture:
        if index < len(self._kept):
            return self._kept[index]
        later = len(self._later)
        for shift in range(later):
            scene = self._later[(index - len(self._kept) + shift) % later]
            if (picture := self._try_read(scene)) is not None:
                return picture
        raise TkError("none of the images can be read", found=f"{later} broken files")

    def _try_read(self, scene: Scene) -> Picture | None:
        try:
            return read_picture(scene, self.side, with_masks=self.with_masks)
        except TkError:
            return None


def read_picture(scene: Scene, side: int, *, with_masks: bool) -> Picture:
    """Read one scene and shrink it to `side`.

    Raises:
        TkError: the image cannot be read or is not of the annotated size.
    """
    full = read_image(scene.path)
    height, width = full.shape[:2]
    if (height, width) != (scene.height, scene.width):
        raise TkError(
            f"{scene.path.name} is not of the size in the annotations",
            expected=f"{scene.height}x{scene.width}",
            found=f"{height}x{width}",
        )
    side = min(side, max(height, width))
    canvas, placement = fit(ImageSpec(side, side), full)
    h, w = placement.valid_hw
    scale = np.asarray(placement.scale, np.float32)
    outlines: list[NDArray[np.float32]] = []
    masks: list[SmallMask | None] = []
    for thing in scene.things:
        mask = mask_of(thing, height, width)
        outlines.append(outline(mask, thing.box) * scale)
        keeps = with_masks and mask is not None
        masks.append(_small_mask(mask, outlines[-1], h, w) if keeps and mask is not None else None)
    labels = np.array([thing.label for thing in scene.things], np.int64)
    return Picture(np.ascontiguousarray(canvas[:h, :w]), labels, tuple(outlines), tuple(masks))


def _small_mask(mask: NDArray[np.bool_], points: NDArray[np.float32], h: int, w: int) -> SmallMask:
    whole = cv2.resize(mask.astype(np.uint8) * 255, (w, h), interpolation=cv2.INTER_AREA)
    x0, y0 = np.clip(np.floor(points.min(axis=0)).astype(int), 0, (w - 1, h - 1))
    x1, y1 = np.clip(np.ceil(points.max(axis=0)).astype(int), (x0 + 1, y0 + 1), (w, h))
    return SmallMask(np.ascontiguousarray(whole[y0:y1, x0:x1]), int(x0), int(y0))
