"""Training of GroundingDINO: task and entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.detector.data import Augmentation
from tk.train.grounding.auxiliary import Auxiliary
from tk.train.grounding.config import GroundingConfig
from tk.train.grounding.data import canvas_spec, collate, grounding_sample
from tk.train.grounding.dense import make_places
from tk.train.grounding.evaluate import Finder, figures
from tk.train.grounding.load import FACTS, open_start, remove_model, write_model
from tk.train.grounding.loss import Truth, dense_loss, grounding_loss, weights_of
from tk.train.grounding.network import forward, level_shapes, normalise
from tk.train.grounding.phrases import Phrasebook, Variety
from tk.train.pretrained.load import RESULT, check_result
from tk.train.run.checkpoint import load_checkpoint, result_weights
from tk.train.run.distributed import is_main
from tk.train.run.launch import launch
from tk.train.run.loop import fit, prepare
from tk.train.run.task import TrainTask, decay_groups
from tk.train.scenes.coco import read_scenes, split
from tk.train.scenes.store import Store

CACHE_FACTOR = 1.25
"""Pictures are kept a little larger than the canvas, so that a magnified view is not blurred."""

BACKBONES = ("model.backbone.", "model.text_backbone.")


class GroundingTask(TrainTask):
    """GroundingDINO training on a COCO folder."""

    name = "grounding-dino"
    betas = (0.9, 0.99)
    best_metric = "ap50"

    def __init__(self, config: GroundingConfig) -> None:
        check_result(config.out, config.model)
        self.config = config
        data = read_scenes(config.data, config.single_class)
        training, held = split(len(data.scenes), config.val_split, config.seed)
        self.held = [data.scenes[index] for index in held]
        self.classes = data.classes
        self.image_spec = canvas_spec(config.size)
        self.start = open_start(config.model, (*data.classes, config.any_word))
        self.book = Phrasebook(self.start.reader, data.classes, variety_of(config))
        self.network: Any = self.start.network
        self.model = self.network
        self.weights = weights_of(self.network.config, config.dense_weight)
        self.shapes = self._shapes()
        if not config.backbone_lr:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(not name.startswith(BACKBONES))
        width = int(self.network.config.d_model)
        self.auxiliary = Auxiliary(width, len(self.classes)) if config.dense_weight else None
        self.augmentation = Augmentation(config.rotate, config.scale, config.colour, config.mirror)
        side, ram = round(config.size * CACHE_FACTOR), int(config.ram_gb * (1 << 30))
        self.store = Store([data.scenes[index] for index in training], side, ram=ram)
        if self.store.skipped:
            print(f"skipped {self.store.skipped} images that cannot be read", file=sys.stderr)

    def _shapes(self) -> list[tuple[int, int]]:
        size, queries = self.config.size, int(self.network.config.num_queries)
        shapes = level_shapes(self.network, size, size)
        count = sum(rows * columns for rows, columns in shapes)
        if count < queries:
            raise TkError(
                f"this detector cannot work on a canvas of {size} pixels",
                expected=f"at least {queries} places, one per query",
                found=f"{count} places",
                fix="a larger --size",
            )
        return shapes

    def __len__(self) -> int:
        return len(self.store)

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> Any:
        """One view, a prompt, and what the view shows of it."""
        asked = self.book.draw(rng)
        return grounding_sample(self.store[index], asked, self.image_spec, self.augmentation, rng)

    def collate(self, samples: Sequence[Any]) -> Any:
        """Pad prompts, join objects."""
        return collate(samples)

    def begin(self, device: torch.device) -> None:
        """Remove the result of an older training: it must not be taken for this one's."""
        if is_main():
            remove_model(self.config.out / RESULT)

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Loss of the decoder's layers and of the encoder's places."""
        pixels, mask = normalise(batch["image"], batch["valid_hw"], self.start.mean, self.start.std)
        outputs = forward(self.network, pixels, mask, batch["ids"], batch["tokens"])
        truth = Truth(batch["boxes"], batch["named"], batch["counts"].tolist(), batch["tokens"])
        size = self.config.size
        places = make_places(self.shapes, size, size, batch["valid_hw"])
        weight = self.config.dense_weight
        values = grounding_loss(outputs, truth, self.weights, places, weight)
        if self.auxiliary is None:
            return values
        logits, boxes = self.auxiliary(outputs.features, places)
        named = F.one_hot(batch["all_labels"], len(self.classes)).bool()
        everywhere = torch.ones_like(logits[:, 0], dtype=torch.bool)
        closed = Truth(batch["all_boxes"], named, batch["all_counts"].tolist(), everywhere)
        found = dense_loss(logits, boxes, closed, self.weights, places)
        extra = sum(found.values(), torch.zeros_like(values["loss"]))
        return {**values, "loss": values["loss"] + weight * extra, "auxiliary": extra}

    def finder(self) -> Finder:
        """Detects with the present weights."""
        start = self.start
        return Finder(self.network, start.reader, self.image_spec, start.mean, start.std)

    def evaluate(self) -> dict[str, float]:
        """Figures on the held-out pictures, asked for the class names in their order.

        `word_…`: asked for their last words; `any_…`: asked for the word that names everything.
        """
        return figures(self.finder(), self.held, self.book.prompts())

    def data_facts(self) -> dict[str, str]:
        """Sizes and names; other classes would be other phrases."""
        return {
            "training images": str(len(self.store)),
            "held-out images": str(len(self.held)),
            "classes": ", ".join(self.classes),
        }

    def parts(self) -> nn.ModuleDict:
        """The model, and what teaches it."""
        parts = {"model": self.model}
        return nn.ModuleDict(parts | ({"auxiliary": self.auxiliary} if self.auxiliary else {}))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Backbones learn at a rate of their own."""
        rest = [
            (name, parameter)
            for name, parameter in self.network.named_parameters()
            if not name.startswith(BACKBONES)
        ]
        core = self.network.model
        groups = _groups(rest, weight_decay, 1.0)
        for backbone in (core.backbone, core.text_backbone):
            groups += decay_groups(backbone, weight_decay, self.config.backbone_lr)
        if self.auxiliary:
            groups += decay_groups(self.auxiliary, weight_decay)
        return groups


def _groups(
    parameters: list[tuple[str, Any]], weight_decay: float, lr_scale: float
) -> list[dict[str, Any]]:
    holder = torch.nn.ParameterDict({name.replace(".", "/"): p for name, p in parameters})
    return decay_groups(holder, weight_decay, lr_scale)


def variety_of(config: GroundingConfig) -> Variety:
    """Options of the training prompts."""
    return Variety(
        shuffle=config.shuffle,
        word_share=config.word_share,
        subset_share=config.subset_share,
        any_word=config.any_word,
        any_share=config.any_share,
    )


def train_grounding(config: GroundingConfig) -> Path:
    """Train GroundingDINO; `OUT/model` is then a Hugging Face folder.

    Returns:
        the best checkpoint.

    Raises:
        TkError: data, options or a start that cannot be used.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    return launch(train_in_process, config)


def train_in_process(config: GroundingConfig) -> Path:
    """Train in this process, which may be one of several."""
    prepare(config)
    task = GroundingTask(config)
    return fit(task, config, partial(write_result, task))


def write_result(task: GroundingTask, best: Path, record: Callable[[dict[str, Any]], None]) -> None:
    """Write the best weights as a Hugging Face folder, unless it is there already."""
    folder = task.config.out / RESULT
    state = load_checkpoint(best, task.name)
    facts = {
        "step": int(state["step"]),
        "size": task.config.size,
        "classes": list(task.classes),
        "prompt": " . ".join(name for name, _ in task.book.names) + " .",
        "start": task.config.model,
        "half": task.config.half,
        "best": state["best"],
    }
    file = folder / FACTS
    if not is_main() or (file.is_file() and read_json(file) == facts):
        return
    write_model(folder, task.start, result_weights(state, "model"), facts, half=task.config.half)
