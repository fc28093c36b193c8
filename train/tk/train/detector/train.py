"""Training of the compact detector: task and entry point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tk.runtime.boxes import clip, nms
from tk.runtime.errors import TkError
from tk.runtime.images import read_image
from tk.runtime.metrics.detection import mean_average_precision
from tk.runtime.preprocess import ImageSpec, fit
from tk.train.detector.config import DetectorConfig
from tk.train.detector.data import Augmentation, make_sample
from tk.train.detector.loss import detector_loss
from tk.train.detector.model import CompactDetector
from tk.train.detector.targets import make_targets
from tk.train.run.loop import fit as fit_task
from tk.train.run.loop import prepare
from tk.train.run.task import TrainTask
from tk.train.scenes.coco import Scene, read_scenes, split
from tk.train.scenes.store import Store

NMS_IOU = 0.5
CACHE_FACTOR = 1.25
"""Pictures are kept a little larger than the canvas, so that a magnified view is not blurred."""


class DetectorTask(TrainTask):
    """Detector training on a COCO folder."""

    name = "detector"
    betas = (0.9, 0.99)
    best_metric = "ap50"

    def __init__(self, config: DetectorConfig) -> None:
        data = read_scenes(config.data, config.single_class)
        training, held = split(len(data.scenes), config.val_split, config.seed)
        self.all_scenes = data.scenes
        self.held = [data.scenes[index] for index in held]
        side = round(config.size * CACHE_FACTOR)
        ram = int(config.ram_gb * (1 << 30))
        self.store = Store([data.scenes[index] for index in training], side, ram=ram)
        if self.store.skipped:
            print(f"skipped {self.store.skipped} images that cannot be read", file=sys.stderr)
        self.classes = data.classes
        self.image_spec = ImageSpec(config.size, config.size)
        self.augmentation = Augmentation(config.rotate, config.scale, config.colour, config.mirror)
        self.network = CompactDetector(len(self.classes), config.size, config.size)
        self.model = self.network

    def __len__(self) -> int:
        return len(self.store)

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        """One view and its target maps."""
        spec = self.image_spec
        image, boxes, labels = make_sample(self.store[index], spec, self.augmentation, rng)
        return image, *make_targets(boxes, labels, len(self.classes), spec.height, spec.width)

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Heat and box loss of a batch."""
        image, *targets = batch
        heat, boxes = self.network.raw(image)
        return detector_loss(heat, boxes, (targets[0], targets[1], targets[2]))

    def evaluate(self) -> dict[str, float]:
        """COCO-style AP on the held-out images, in pixels of the original images."""
        predictions, truths = [], []
        for scene in self.held:
            try:
                found = predict(self.network, self.image_spec, scene)
            except TkError:
                continue
            predictions.append(found)
            boxes = np.stack([thing.box for thing in scene.things]) if scene.things else _NO_BOXES
            truths.append((boxes, np.array([thing.label for thing in scene.things], np.int64)))
        if not any(len(boxes) for boxes, _ in truths):
            return {}
        return {
            name: mean_average_precision(predictions, truths, iou)
            for name, iou in (("ap50", 0.5), ("ap75", 0.75))
        }


_NO_BOXES = np.zeros((0, 4), np.float32)


def predict(
    model: CompactDetector, spec: ImageSpec, scene: Scene
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Detect in one image file.

    Returns:
        boxes: (N, 4) float32 xyxy in image pixels, scores: (N,) float32, labels: (N,) int64, after
        non-maximum suppression across classes.
    """
    image = read_image(scene.path)
    canvas, placement = fit(spec, image)
    batch = torch.from_numpy(canvas)[None].to(model.mean.device)
    boxes, scores = (output[0].cpu().numpy() for output in model(batch))
    boxes = clip(placement.to_image(boxes), image.shape[1], image.shape[0])
    best = scores.max(axis=1)
    kept = nms(boxes, best, NMS_IOU)
    return boxes[kept], best[kept], scores[kept].argmax(axis=1).astype(np.int64)


def train_detector(config: DetectorConfig) -> Path:
    """Train a detector; returns its best checkpoint.

    Raises:
        TkError: data or options that cannot be used.
    """
    prepare(config)
    return fit_task(DetectorTask(config), config)
