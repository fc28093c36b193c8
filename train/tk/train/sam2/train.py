"""Training of SAM-2: task and entry point."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.pretrained.load import RESULT, check_result
from tk.train.run.checkpoint import load_checkpoint, load_weights
from tk.train.run.distributed import is_main
from tk.train.run.launch import launch
from tk.train.run.loop import fit, prepare
from tk.train.run.task import TrainTask, decay_groups
from tk.train.sam2.config import SMALL, Sam2Config
from tk.train.sam2.data import CanvasStore, Sample, make_sample
from tk.train.sam2.loss import Weights, drawn_regions, filled_boxes, sam2_loss
from tk.train.sam2.model import freeze, predict, side_of, write_model
from tk.train.sam2.open import open_model
from tk.train.sam2.segment import scene_overlaps
from tk.train.sam2.small import detail
from tk.train.scenes.coco import Scene, read_scenes, split

DETAIL_RATE = 0.2
"""Learning rate of the layers that add the picture's detail, as a share, with random weights."""


class Sam2Task(TrainTask):
    """SAM-2 training on a COCO folder with masks."""

    name = "sam2"
    betas = (0.9, 0.99)
    best_metric = "mask_iou"

    def __init__(self, config: Sam2Config) -> None:
        check_result(config.out, config.model)
        data = read_scenes(config.data)
        scenes = [s for s in data.scenes if any(t.segmentation for t in s.things)]
        if not scenes:
            raise TkError(f"no object in {config.data} has a mask", fix="give COCO segmentations")
        self.network, self.normalisation = open_model(config.model, config.size)
        freeze(self.network, encoder=config.freeze_encoder)
        self.model = self.network
        side = side_of(self.network)
        self.image_spec = ImageSpec(side, side, mode="stretch", interpolation="area")
        self.cells = side // 4 * config.loss_scale
        self.classes = data.classes
        self.config = config
        training, held = split(len(scenes), config.val_split, config.seed)
        self.held: list[Scene] = [scenes[index] for index in held]
        ram = int(config.ram_gb * (1 << 30))
        self.store = CanvasStore([scenes[index] for index in training], self.image_spec, ram)
        if self.store.skipped and is_main():
            what = "images that cannot be read or have no mask"
            print(f"skipped {self.store.skipped} {what}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self.store)

    def begin(self, device: torch.device) -> None:
        """Remove the result of an older state of the run, lest it be exported for this one's."""
        if is_main():
            shutil.rmtree(self.config.out / RESULT, ignore_errors=True)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Random weights: slower where detail would drown the box before it is understood."""
        if self.config.model != SMALL:
            return super().parameter_groups(weight_decay)
        slow = detail(self.network)
        slow_ones = {id(parameter) for parameter in slow.parameters()}
        groups = super().parameter_groups(weight_decay)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in slow_ones]
        return [*groups, *decay_groups(slow, weight_decay, DETAIL_RATE)]

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Sample:
        """Some objects of a picture and their masks."""
        return make_sample(self.store[index], self.config, self.cells, rng)

    def collate(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Canvases (B, S, S, 3), boxes (B, K, 4), masks (B * K, T, T)."""
        return (
            torch.from_numpy(np.stack([sample.canvas for sample in samples])),
            torch.from_numpy(np.stack([sample.boxes for sample in samples])),
            torch.from_numpy(np.concatenate([sample.masks for sample in samples])),
        )

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Loss of the boxes of a batch of pictures."""
        canvases, boxes, masks = batch
        config = self.config
        found = predict(self.network, self.normalisation.pixels(canvases), boxes)
        if config.loss_scale > 1:
            found = found.enlarged(masks.shape[-1])
        target = masks.float() / 255
        weights = Weights(
            focal=config.focal_weight,
            dice=config.dice_weight,
            iou=config.iou_weight,
            score=config.object_weight,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
        )
        region = None
        if config.inside_first:
            region = drawn_regions(boxes.flatten(0, 1), self.image_spec.width, target.shape[-1])
        elsewhere = step >= config.inside_first * config.steps
        filled = None
        if config.fill_box:
            filled = filled_boxes(boxes.flatten(0, 1), self.image_spec.width, target.shape[-1])
        return sam2_loss(found, target, weights, config.all_masks, region, elsewhere, filled)

    def evaluate(self) -> dict[str, float]:
        """Mean IoU of the masks of true boxes, at the resolution of the held-out images."""
        overlaps: list[float] = []
        errors: list[float] = []
        for scene in self.held:
            try:
                found, estimates = scene_overlaps(
                    self.network, self.normalisation, self.image_spec, scene
                )
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

    def facts(self) -> dict[str, Any]:
        """Sizes, for config.json."""
        return {
            "canvas": self.image_spec.width,
            "pictures": {"training": len(self), "held_out": len(self.held)},
        }

    def finish(self, best: Path, record: Callable[[dict[str, Any]], None]) -> None:
        """Write OUT/model from the best weights, unless it is there already."""
        folder = self.config.out / RESULT
        weights = folder / "model.safetensors"
        done = weights.is_file() and weights.stat().st_mtime >= best.stat().st_mtime
        if done or not is_main():
            return
        model = copy.deepcopy(self.network).cpu()
        load_weights(model, load_checkpoint(best, self.name), best)
        write_model(model, self.normalisation, folder, half=self.config.half)


def train_sam2(config: Sam2Config) -> Path:
    """Train as `config` says; returns the best checkpoint.

    Beside it lies `model/`, a folder of the library's layout with the best weights.

    Raises:
        TkError: data, model or options that cannot be used.
        KeyboardInterrupt: stopped; the run can go on with `resume="last"`.
    """
    return launch(train_in_process, config)


def train_in_process(config: Sam2Config) -> Path:
    """Body of `train_sam2` in one of its processes."""
    prepare(config)
    task = Sam2Task(config)
    return fit(task, config, task.finish)
