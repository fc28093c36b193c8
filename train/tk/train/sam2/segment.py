"""Masks of a picture as the runtime makes them, from the model in training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Sam2Model

from tk.runtime.boxes import clip, valid
from tk.runtime.heads.segmenter import draw_masks
from tk.runtime.images import read_image
from tk.runtime.masks import BoxMask
from tk.runtime.metrics.masks import mask_iou
from tk.runtime.preprocess import Image, ImageSpec, fit
from tk.train.sam2.model import Normalisation, best_masks, predict
from tk.train.scenes.coco import Scene, mask_of

MAX_BOXES = 16
"""Boxes per call of the decoder, as in the exported one."""


@torch.inference_mode()
def segment(
    model: Sam2Model,
    normalisation: Normalisation,
    spec: ImageSpec,
    image: Image,
    boxes: NDArray[np.float32],
) -> tuple[tuple[BoxMask, ...], NDArray[np.float32]]:
    """Cut objects out of an image; of each box's masks the one of the highest predicted IoU.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 xyxy, image pixels, N >= 1, each with an area inside the image.

    Returns:
        one mask per box, and (N,) float32 predicted IoU.
    """
    canvas, placement = fit(spec, image)
    device = next(model.parameters()).device
    pixels = normalisation.pixels(torch.from_numpy(canvas)[None].to(device))
    prompts = torch.from_numpy(placement.to_canvas(boxes)).to(device)
    whole = np.asarray([[0, 0, spec.width, spec.height]], np.float32)
    frame = placement.to_image(whole)
    maps = model.get_image_embeddings(pixels)
    masks: list[BoxMask] = []
    estimates: list[NDArray[np.float32]] = []
    for start in range(0, len(boxes), MAX_BOXES):
        chunk = boxes[start : start + MAX_BOXES]
        rows = prompts[None, start : start + MAX_BOXES]
        logits, iou = best_masks(predict(model, None, rows, list(maps)))
        frames = np.repeat(frame, len(chunk), axis=0)
        masks += draw_masks(logits.cpu().numpy(), frames, chunk, image.shape[:2])
        estimates.append(iou.cpu().numpy())
    return tuple(masks), np.concatenate(estimates)


def scene_overlaps(
    model: Sam2Model, normalisation: Normalisation, spec: ImageSpec, scene: Scene
) -> tuple[list[float], list[float]]:
    """IoU of the mask of each true box of a scene, measured and as the model thinks.

    Raises:
        TkError: the image cannot be read.
    """
    image = read_image(scene.path)
    height, width = image.shape[:2]
    boxes, masks = [], []
    for thing in scene.things:
        mask = mask_of(thing, height, width)
        usable = valid(clip(thing.box[None], width, height))[0]
        if mask is not None and mask.any() and usable:
            boxes.append(thing.box)
            masks.append(mask)
    if not boxes:
        return [], []
    found, estimates = segment(model, normalisation, spec, image, np.stack(boxes))
    overlaps = [mask_iou(own.full(), true) for own, true in zip(found, masks, strict=True)]
    return overlaps, estimates.tolist()
