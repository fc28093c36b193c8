"""Segmenter: pictures and boxes in, one mask per box out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.boxes import clip, enlarge, valid
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, upsample_logits
from tk.runtime.preprocess import Image, Placement, fit

REGION_MARGIN = 0.1
"""A mask is drawn only inside its box enlarged by this share of the box's longer side."""


@dataclass(frozen=True)
class Masks:
    """Masks of one picture, in the order of its boxes.

    Attributes:
        masks: one per box; may be empty, and is for a box that cannot hold anything (see
            `segment`).
        iou: (N,) float32, the model's own estimate of each mask's quality, 0..1; 0 for such boxes.
    """

    masks: tuple[BoxMask, ...]
    iou: NDArray[np.float32]


class Segmenter:
    """An image encoder that runs once per picture and a decoder that takes all its boxes.

    The manifest's settings say which rectangle the decoder's logits cover: `mask_frame` is
    `canvas` (SAM-2) or `box`, the prompt box enlarged by `frame_margin`.
    """

    def __init__(self, bundle: Bundle, **session_options: Any) -> None:
        self.manifest = bundle.manifest
        self.encoder: Session = bundle.session("encoder", **session_options)
        self.decoder: Session = bundle.session("decoder", **session_options)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that was opened."""
        return (self.encoder, self.decoder)

    def segment(self, images: Sequence[Image], boxes: Sequence[NDArray[np.float32]]) -> list[Masks]:
        """Cut objects out.

        A box without area, with a coordinate that is not finite or without a pixel of the picture
        gets an empty mask and does not reach the network.

        Args:
            images: each (H, W, 3) uint8 RGB.
            boxes: per picture (N, 4) float32 xyxy, pixels of that picture. A picture without
                boxes does not reach the network.

        Returns:
            One `Masks` per picture, in order.

        Raises:
            TkError: not one array of boxes per picture, or an array of another shape.
        """
        if len(images) != len(boxes) or any(own.ndim != 2 or own.shape[1] != 4 for own in boxes):
            raise TkError(
                "a segmenter needs boxes for each picture",
                expected=f"{len(images)} arrays of shape (N, 4)",
                found=", ".join(str(own.shape) for own in boxes) or "none",
            )
        usable = [_usable(own, *image.shape[:2]) for image, own in zip(images, boxes, strict=True)]
        results = [
            _nothing(len(own), *image.shape[:2]) for image, own in zip(images, boxes, strict=True)
        ]
        busy = [index for index, rows in enumerate(usable) if len(rows)]
        size = self.manifest.parts["encoder"].max_batch
        for start in range(0, len(busy), size):
            chunk = busy[start : start + size]
            fitted = [fit(self.manifest.image, images[index]) for index in chunk]
            features = self.encoder.run({"image": np.stack([canvas for canvas, _ in fitted])})
            for row, index in enumerate(chunk):
                own = {name: array[row : row + 1] for name, array in features.items()}
                rows = usable[index]
                hw = images[index].shape[:2]
                found = self._decode(own, boxes[index][rows], fitted[row][1], hw)
                results[index] = _spread(found, rows, results[index])
        return results

    def _decode(
        self,
        features: Arrays,
        boxes: NDArray[np.float32],
        placement: Placement,
        image_hw: tuple[int, ...],
    ) -> Masks:
        """Masks of one picture's boxes; logits are in memory for one chunk of boxes at a time.

        So 100 boxes need as much as 32: 1.0 GB with SAM-2 at 1024 pixels (3.7 GB in one call), and
        30 MB for the masks themselves in a photo of 12 megapixels.
        """
        masks: list[BoxMask] = []
        iou: list[NDArray[np.float32]] = []
        size = self.manifest.parts["decoder"].max_batch
        for start in range(0, len(boxes), size):
            chunk = boxes[start : start + size]
            on_canvas = placement.to_canvas(chunk)
            outputs = self.decoder.run({**features, "boxes": on_canvas})
            logits = np.asarray(outputs["logits"], np.float32)
            masks += draw_masks(logits, self._frames(on_canvas, placement), chunk, image_hw)
            iou.append(np.asarray(outputs["iou"], np.float32))
        return Masks(tuple(masks), np.concatenate(iou))

    def _frames(self, on_canvas: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        settings, spec = self.manifest.settings, self.manifest.image
        if settings["mask_frame"] == "box":
            return box_frames(on_canvas, placement, settings["frame_margin"])
        canvas = np.asarray([[0, 0, spec.width, spec.height]], np.float32)
        return np.repeat(placement.to_image(canvas), len(on_canvas), axis=0)


def _usable(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.int64]:
    """Rows of the boxes that are finite, have an area and share some of it with the picture."""
    good = valid(boxes)
    good[good] = valid(clip(boxes[good], width, height))
    return np.flatnonzero(good)


def _nothing(count: int, height: int, width: int) -> Masks:
    empty = BoxMask(0, 0, np.zeros((0, 0), np.bool_), height, width)
    return Masks((empty,) * count, np.zeros(count, np.float32))


def _spread(found: Masks, rows: NDArray[np.int64], into: Masks) -> Masks:
    """Put what was found into its rows of a result for all boxes."""
    masks, iou = list(into.masks), into.iou.copy()
    for row, mask in zip(rows, found.masks, strict=True):
        masks[row] = mask
    iou[rows] = found.iou
    return Masks(tuple(masks), iou)


def box_frames(
    on_canvas: NDArray[np.float32], placement: Placement, margin: float
) -> NDArray[np.float32]:
    """Rectangles of the image that logits over enlarged prompt boxes cover.

    Args:
        on_canvas: (N, 4) float32 xyxy, canvas pixels.
        placement: where the image lies on the canvas.
        margin: share of a box's longer side that the decoder adds on each side.

    Returns:
        (N, 4) float32 xyxy, image pixels; may reach outside the image.
    """
    return placement.to_image(enlarge(on_canvas, margin))


def draw_masks(
    logits: NDArray[np.float32],
    frames: NDArray[np.float32],
    boxes: NDArray[np.float32],
    image_hw: tuple[int, ...],
) -> tuple[BoxMask, ...]:
    """Draw masks at image resolution, only inside the slightly enlarged boxes.

    Args:
        logits: (N, h, w) float32, object above 0.
        frames: (N, 4) float32 xyxy, the rectangles of the image that they cover.
        boxes: (N, 4) float32 xyxy, image pixels.
        image_hw: height and width of the image.
    """
    regions = enlarge(boxes, REGION_MARGIN)
    regions = np.concatenate([np.floor(regions[:, :2]), np.ceil(regions[:, 2:])], axis=1)
    regions = clip(regions.astype(np.float32), image_hw[1], image_hw[0]).astype(np.int64)
    hw = (image_hw[0], image_hw[1])
    return tuple(
        upsample_logits(own, frame, region, hw)
        for own, frame, region in zip(logits, frames, regions, strict=True)
    )
