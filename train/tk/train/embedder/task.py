"""The embedder as the training loop sees it: samples, loss, evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tk.runtime.images import ImageError
from tk.runtime.metrics.classification import accuracy, macro_f1
from tk.runtime.metrics.retrieval import recall_at_1
from tk.runtime.preprocess import Image, fit
from tk.train.embedder.arcface import ArcFace
from tk.train.embedder.augment import Augment, shrink
from tk.train.embedder.cache import Budget, Cache
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.cosface import CosFace
from tk.train.embedder.cosine import CosineHead
from tk.train.embedder.data import (
    CropFile,
    Picture,
    check_class_sizes,
    cut_picture,
    find_crops,
    read_picture,
)
from tk.train.embedder.model import EmbedNet
from tk.train.embedder.split import split_crops
from tk.train.run.task import TrainTask, decay_groups

LOSSES: dict[str, type[CosineHead]] = {"arcface": ArcFace, "cosface": CosFace}
HEAD_DECAY = 1e-4
"""Weight decay of a head on a pretrained backbone and of the class centres."""


class EmbedderTask(TrainTask):
    """Data, network and loss of one run.

    Attributes:
        splits: split name -> usable crops.
        skipped: one sentence per crop that was left out.
    """

    name: ClassVar[str] = "embedder"
    best_metric: ClassVar[str] = "val_accuracy"
    model: EmbedNet

    def __init__(self, config: EmbedderConfig) -> None:
        self.config = config
        self.classes, crops = find_crops(config.data)
        check_class_sizes(self.classes, crops, config.min_per_class)
        spec = config.crop_spec()
        self.image_spec, self.crop_spec = config.image_spec(), spec
        self._load(split_crops(crops, config.val_split, config.test_split, config.seed))
        self.augment = Augment(config.aug, self.image_spec, spec, config.mask_share())
        self.model = EmbedNet(
            config.model_id,
            config.emb_dim,
            config.img_size,
            pretrained=config.pretrained,
            weights=config.weights,
        )
        self.model.backbone.requires_grad_(not config.freeze_backbone)
        self.margin = LOSSES[config.loss](
            config.emb_dim, len(self.classes), scale=config.scale, margin=config.margin
        )

    def _load(self, splits: dict[str, list[CropFile]]) -> None:
        """Read every file once and keep what fits into memory."""
        budget = Budget(int(self.config.cache_gb * 1e9))
        self.train = Cache(splits["train"], self._picture, _picture_bytes, budget)
        self.val = Cache(splits["val"], self.canvas, _array_bytes, budget)
        self.test = Cache(splits["test"], self.canvas, _array_bytes, budget)
        self.splits = {
            "train": self.train.crops,
            "val": self.val.crops,
            "test": self.test.crops,
        }
        self.skipped = self.train.skipped + self.val.skipped + self.test.skipped
        for text in self.skipped[:10]:
            print(f"left out: {text}", file=sys.stderr)
        if self.skipped:
            print(f"{len(self.skipped)} files left out", file=sys.stderr)
            usable = [crop for crops in self.splits.values() for crop in crops]
            least = self.config.min_per_class
            check_class_sizes(self.classes, usable, least, skipped=len(self.skipped))

    def _read(self, crop: CropFile) -> Picture:
        picture = read_picture(crop)
        if self.config.crop_mode == "mask" and picture.mask is None:
            raise ImageError(f"{crop.path.name} has no usable mask (--crop_mode mask)")
        return picture

    def _picture(self, crop: CropFile) -> Picture:
        return shrink(self._read(crop), self.config.img_size)

    def canvas(self, crop: CropFile) -> Image:
        """What the model sees of a crop at evaluation and at run time: (S, S, 3) uint8 RGB."""
        return fit(self.image_spec, cut_picture(self._read(crop), self.config.crop_spec()))[0]

    def __len__(self) -> int:
        return len(self.train)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[Image, int]:
        """One augmented canvas and its label."""
        return self.augment(self.train[index], rng), self.train.crops[index].label

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Margin loss; `accuracy` is measured without the margin."""
        images, labels = batch
        self.margin.margin = self.config.margin * self._growth(step)
        embedding = self.model(images)
        right = self.margin.logits(embedding.detach()).argmax(dim=1) == labels
        return {
            "loss": F.cross_entropy(self.margin(embedding, labels), labels),
            "accuracy": right.float().mean(),
        }

    def _growth(self, step: int) -> float:
        """Share of the margin that counts at a step: a new network cannot meet all of it."""
        rise = self.config.margin_warmup * self.config.in_steps(len(self)).steps
        return min(1.0, (step + 1) / rise) if rise else 1.0

    def evaluate(self) -> dict[str, float]:
        """Figures on the validation split."""
        return self.measure(self.val, "val")

    def measure(self, cache: Cache[Image], prefix: str) -> dict[str, float]:
        """Loss and accuracy (no margin), macro-F1 and recall@1 of one split; {} if it is empty."""
        if not len(cache):
            return {}
        labels = np.asarray([crop.label for crop in cache.crops], np.int64)
        embeddings = self.embed(cache[i] for i in range(len(cache)))
        with torch.inference_mode():
            on_device = torch.from_numpy(embeddings).to(self.margin.weight.device)
            logits = self.margin.logits(on_device).cpu()
        predicted = logits.argmax(dim=1).numpy()
        figures = {
            "loss": float(F.cross_entropy(logits, torch.from_numpy(labels))),
            "accuracy": accuracy(labels, predicted),
            "macro_f1": macro_f1(labels, predicted),
            "recall_at_1": recall_at_1(embeddings, labels),
        }
        return {f"{prefix}_{name}": value for name, value in figures.items()}

    def embed(self, canvases: Iterable[Image]) -> NDArray[np.float32]:
        """Embed canvases batch by batch: (N, D) float32, unit length; the model must be in eval."""
        canvases, found = iter(canvases), []
        device = next(self.model.parameters()).device
        while batch := list(islice(canvases, self.config.batch_size)):
            images = torch.from_numpy(np.stack(batch)).to(device)
            with torch.inference_mode():
                found.append(self.model(images).cpu().numpy())
        if not found:
            return np.zeros((0, self.config.emb_dim), np.float32)
        return np.concatenate(found)

    def to(self, device: torch.device) -> None:
        """Move network and class centres."""
        self.model.to(device)
        self.margin.to(device)

    def train_mode(self) -> None:
        """Training mode, except for a frozen backbone: its statistics must not move."""
        self.model.train()
        if self.config.freeze_backbone:
            self.model.backbone.eval()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Backbone with its own learning rate; head and class centres."""
        config = self.config
        started = config.pretrained or config.weights is not None
        scale = config.backbone_lr / config.lr if config.backbone_lr else (0.2 if started else 1.0)
        head = nn.ModuleList([self.model.head, self.margin])
        groups = decay_groups(self.model.backbone, weight_decay, scale)
        return groups + decay_groups(head, HEAD_DECAY)

    def extra_state(self) -> dict[str, Any]:
        """Class centres: no part of the model that is exported."""
        return {"margin": dict(self.margin.state_dict())}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the class centres."""
        self.margin.load_state_dict(state["margin"])


def _picture_bytes(picture: Picture) -> int:
    return picture.image.nbytes + (0 if picture.mask is None else picture.mask.nbytes)


def _array_bytes(image: Image) -> int:
    return image.nbytes


def choose_references(
    crops: Sequence[CropFile], classes: int, limit: int, seed: int
) -> list[CropFile]:
    """At most `limit` crops of each class (0: all), a seeded choice in the order of `crops`."""
    rng = np.random.default_rng(seed)
    chosen: list[CropFile] = []
    for label in range(classes):
        members = [crop for crop in crops if crop.label == label]
        if 0 < limit < len(members):
            picked = rng.choice(len(members), limit, replace=False)
            members = [members[i] for i in sorted(picked)]
        chosen += members
    return chosen
