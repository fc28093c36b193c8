"""Training of the compact segmenter: task and entry point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tk.runtime.errors import TkError
from tk.runtime.heads.segmenter import box_frames, draw_masks
from tk.runtime.images import read_image
from tk.runtime.masks import BoxMask
from tk.runtime.metrics.masks import mask_iou
from tk.runtime.preprocess import Image, ImageSpec
from tk.runtime.preprocess import fit as fit_image
from tk.train.run.loop import fit, prepare
from tk.train.run.task import TrainTask
from tk.train.scenes.coco import Scene, mask_of, read_scenes, split
from tk.train.scenes.store import Store
from tk.train.segmenter.config import SegmenterConfig
from tk.train.segmenter.data import make_sample
from tk.train.segmenter.loss import segmenter_loss
from tk.train.segmenter.model import CompactSegmenter


class SegmenterTask(TrainTask):
    """Segmenter training on a COCO folder with masks."""

    name = "segmenter"
    betas = (0.9, 0.99)
    best_metric = "mask_iou"

    def __init__(self, config: SegmenterConfig) -> None:
        data = read_scenes(config.data)
        scenes = [s for s in data.scenes if any(t.segmentation for t in s.things)]
        if not scenes:
            raise TkError(f"no object in {config.data} has a mask", fix="give COCO segmentations")
        training, held = split(len(scenes), config.val_split, config.seed)
        self.held = [scenes[index] for index in held]
        ram = int(config.ram_gb * (1 << 30))
        training_scenes = [scenes[index] for index in training]
        self.store = Store(training_scenes, config.size, ram=ram, with_masks=True)
        if self.store.skipped:
            print(f"skipped {self.store.skipped} images that cannot be read", file=sys.stderr)
        self.classes = data.classes
        self.image_spec = ImageSpec(config.size, config.size)
        self.config = config
        self.network = CompactSegmenter(config.margin)
        self.model = self.network

    def __len__(self) -> int:
        return len(self.store)

    def sample(
        self, index: int, epoch: int, rng: np.random.Generator
    ) -> tuple[Image, NDArray[np.uint8]]:
        """One object of a picture and its mask."""
        return make_sample(self.store[index], self.config, rng)

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Mask and IoU loss of a batch."""
        crops, masks = batch
        logits, quality = self.network.cut_out(self.network.encode(crops))
        return segmenter_loss(logits, quality, masks.float() / 255)

    def evaluate(self) -> dict[str, float]:
        """Mean IoU of the masks of true boxes, at the resolution of the held-out images."""
        overlaps: list[float] = []
        errors: list[float] = []
        for scene in self.held:
            try:
                found, estimates = scene_overlaps(self.network, self.image_spec, scene)
            except TkError:
                continue
            overlaps += found
            errors += [abs(a - b) for a, b in zip(found, estimates, strict=True)]
        if not overlaps:
            return {}
        return {
            "mask_iou": float(np.mean(overlaps)),
            "above_80": float(np.mean(np.asarray(overlaps) >= 0.8)),
            "iou_error": float(np.mean(errors)),
        }


def scene_overlaps(
    model: CompactSegmenter, spec: ImageSpec, scene: Scene
) -> tuple[list[float], list[float]]:
    """IoU of the mask of each true box of a scene, measured and as the model thinks."""
    image = read_image(scene.path)
    pairs = [(thing.box, mask_of(thing, *image.shape[:2])) for thing in scene.things]
    pairs = [(box, mask) for box, mask in pairs if mask is not None]
    if not pairs:
        return [], []
    masks, estimates = segment(model, spec, image, np.stack([box for box, _ in pairs]))
    overlaps = [
        mask_iou(found.full(), true)
        for found, (_, true) in zip(masks, pairs, strict=True)
        if true is not None
    ]
    return overlaps, estimates.tolist()


def segment(
    model: CompactSegmenter, spec: ImageSpec, image: Image, boxes: NDArray[np.float32]
) -> tuple[tuple[BoxMask, ...], NDArray[np.float32]]:
    """Cut objects out of an image as the runtime does.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 xyxy, image pixels, N >= 1.

    Returns:
        one mask per box, and (N,) float32 estimated IoU.
    """
    canvas, placement = fit_image(spec, image)
    on_canvas = placement.to_canvas(boxes)
    device = model.rim.device
    with torch.inference_mode():
        pixels = model.encode(torch.from_numpy(canvas)[None].to(device))
        logits, iou = model.decode(pixels, torch.from_numpy(on_canvas).to(device))
    frames = box_frames(on_canvas, placement, model.margin)
    masks = draw_masks(logits.cpu().numpy(), frames, boxes, image.shape[:2])
    return masks, iou.cpu().numpy()


def train_segmenter(config: SegmenterConfig) -> Path:
    """Train a segmenter; returns its best checkpoint.

    Raises:
        TkError: data or options that cannot be used.
    """
    prepare(config)
    return fit(SegmenterTask(config), config)
