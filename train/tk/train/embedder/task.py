"""The embedder as a training task: crops, network, margin loss, evaluation."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tk.runtime.errors import TkError
from tk.runtime.images import ImageError
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
    lacks_context,
    read_picture,
)
from tk.train.embedder.figures import Running, class_figures, cross_entropy, retrieval_figures
from tk.train.embedder.frozen import FrozenFeatures
from tk.train.embedder.groups import parameter_groups
from tk.train.embedder.model import EmbedNet
from tk.train.embedder.split import split_crops, write_splits
from tk.train.run.distributed import gather_shares, is_main, share
from tk.train.run.task import TrainTask

LOSSES: dict[str, type[CosineHead]] = {"arcface": ArcFace, "cosface": CosFace}
HEAD_DECAY = 1e-4
"""Weight decay of the head and of the class centres."""
SHORT = 0.2
"""Share of crop files without enough context that is worth a warning: some lie at an edge."""


class EmbedderTask(TrainTask):
    """Data, network and loss of one run.

    Attributes:
        caches: split name -> its usable crops and pictures (train) or canvases (val, test).
        skipped: one sentence per crop that was left out.
        kept: features of a frozen backbone, once `begin` has computed them.
    """

    name: ClassVar[str] = "embedder"
    best_metric = "val_accuracy"
    tie_metric: ClassVar[str] = "val_map_at_r"
    model: EmbedNet

    def __init__(self, config: EmbedderConfig) -> None:
        self.config = config
        if config.out.resolve().is_relative_to(config.data.resolve()):
            raise TkError(
                f"the run folder {config.out} lies among the classes of {config.data}",
                fix="give an --out beside the data",
            )
        self.classes, crops = find_crops(config.data, merge=config.merge, exclude=config.exclude)
        check_class_sizes(self.classes, crops, config.min_per_class)
        spec = config.crop_spec()
        self.image_spec, self.crop_spec = config.image_spec(), spec
        self._load(split_crops(crops, config.val_split, config.test_split, config.seed))
        self.masks: dict[str, int] = {}
        self._check_masks()
        self.augment = Augment(config.aug, self.image_spec, spec, config.mask_share())
        self.model = EmbedNet(
            config.model_id,
            config.emb_dim,
            config.img_size,
            head_norm=config.head_norm,
            # A resumed run has its weights in the checkpoint: the file may be gone.
            pretrained=config.pretrained and not config.resume,
            weights=None if config.resume else config.weights,
        )
        self.model.backbone.requires_grad_(not config.freeze_backbone)
        self.margin = LOSSES[config.loss](
            config.emb_dim,
            len(self.classes),
            scale=config.scale,
            margin=config.margin,
            sub_centers=config.sub_centers,
        )
        self.seen = Running(self.classes)
        self.kept: FrozenFeatures | None = None

    def _check_masks(self) -> None:
        """Say how many crops have masks; training on none when they were asked for is an error."""
        if self.config.crop_mode == "bbox":
            return
        masks = {"usable": 0, "missing or unusable": 0}
        for index in range(len(self.train)):
            masks["missing or unusable" if self.train[index].mask is None else "usable"] += 1
        if not masks["usable"]:
            raise TkError(
                f"--crop_mode {self.config.crop_mode} paints backgrounds over, and no crop has a "
                "usable mask",
                expected="masks/{stem}_mask.png of the size of its crop, or RGBA cutouts",
                fix="--auto_generate_masks with --sam2_ckpt, `tk data masks`, or --crop_mode bbox",
            )
        self.masks = masks
        if is_main():
            text = ", ".join(f"{count} {name}" for name, count in masks.items())
            print(f"masks of the training crops: {text}", file=sys.stderr)

    def _load(self, splits: dict[str, list[CropFile]]) -> None:
        """Read every file once and keep what fits into memory."""
        budget = Budget(int(self.config.cache_gb * 1e9))
        self.short_of_context: list[str] = []
        self.train = Cache(splits["train"], self._picture, _picture_bytes, budget)
        self.held = {
            name: Cache(splits[name], self.canvas, _array_bytes, budget) for name in ("val", "test")
        }
        self.splits = {"train": self.train.crops}
        self.splits |= {name: cache.crops for name, cache in self.held.items()}
        self.skipped = list(self.train.skipped)
        for cache in self.held.values():
            self.skipped += cache.skipped
        if is_main():
            self._warn()
        if not self.skipped:
            return
        usable = [crop for crops in self.splits.values() for crop in crops]
        least = self.config.min_per_class
        check_class_sizes(self.classes, usable, least, skipped=len(self.skipped))

    def _warn(self) -> None:
        """Tell the user what is wrong with the crops."""
        for text in self.skipped[:10]:
            print(f"left out: {text}", file=sys.stderr)
        if self.skipped:
            print(f"{len(self.skipped)} files left out", file=sys.stderr)
        short, total = len(set(self.short_of_context)), sum(map(len, self.splits.values()))
        if short > SHORT * total:
            margin = self.config.crop_margin
            print(
                f"warning: {short} of {total} crop files end before the margin of {margin:g} that "
                "the annotator will cut around an object: cut them wider, or give the margin they "
                "have with --crop_margin, or train on masked crops (--crop_mode mask)",
                file=sys.stderr,
            )

    def _read(self, crop: CropFile) -> Picture:
        picture = read_picture(crop)
        if self.config.crop_mode == "mask" and picture.mask is None:
            raise ImageError(f"{crop.path.name} has no usable mask (--crop_mode mask)")
        if lacks_context(picture, self.config.crop_spec()):
            self.short_of_context.append(str(crop.path))
        return picture

    def _picture(self, crop: CropFile) -> Picture:
        return shrink(self._read(crop), self.config.img_size)

    def canvas(self, crop: CropFile) -> Image:
        """What the model sees of a crop at evaluation and at run time: (S, S, 3) uint8 RGB."""
        return fit(self.image_spec, cut_picture(self._read(crop), self.config.crop_spec()))[0]

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class of every usable crop of a split: (N,) int64."""
        return np.asarray([crop.label for crop in self.splits[split]], np.int64)

    def __len__(self) -> int:
        return len(self.train)

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> tuple[Any, int]:
        """One augmented canvas, or the feature of one, and its label."""
        label = self.train.crops[index].label
        if self.kept:
            return self.kept.train(index, epoch), label
        return self.augment(self.train[index], rng), label

    def begin(self, device: torch.device) -> None:
        """Write the splits; compute what a frozen backbone says of every crop, once."""
        if is_main():
            write_splits(
                self.config.out / "splits.json", self.config.data, self.classes, self.splits
            )
        if self.config.keeps_features():
            self.kept = FrozenFeatures(
                self.config, self.model, self.augment, self.train, self.held, device
            )

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Margin loss; `accuracy` is measured without the margin."""
        inputs, labels = batch
        self.margin.margin = self.config.margin * self._growth(step)
        embedding = self.model.project(inputs) if self.kept else self.model(inputs)
        losses = F.cross_entropy(self.margin(embedding, labels), labels, reduction="none")
        logits = self.margin.logits(embedding.detach()).detach()
        self.seen.add(labels, logits)
        right = logits.argmax(dim=1) == labels
        return {"loss": losses.mean(), "accuracy": right.float().mean()}

    def _growth(self, step: int) -> float:
        """Share of the margin that counts at a step: a new network cannot meet all of it."""
        rise = self.config.margin_warmup * self.config.in_steps(len(self)).steps
        return min(1.0, (step + 1) / rise) if rise else 1.0

    def evaluate(self) -> dict[str, Any]:
        """Figures of the training batches since the last evaluation, and of the validation."""
        figures = {f"train_{name}": value for name, value in self.seen.figures().items()}
        self.seen.clear()
        return figures | self.measure("val")

    def measure(self, split: str) -> dict[str, Any]:
        """Figures of `val` or `test` without margin and augmentation; {} if the split is empty."""
        labels = self.labels(split)
        if not len(labels):
            return {}
        embeddings = self.embed_split(split)
        logits = self.logits(embeddings)
        probabilities = logits.softmax(dim=1).numpy()
        figures = {
            "loss": cross_entropy(logits, labels),
            **retrieval_figures(embeddings, labels),
            **class_figures(labels, probabilities, self.classes),
        }
        return {f"{split}_{name}": value for name, value in figures.items()}

    def logits(self, embeddings: NDArray[np.float32]) -> Tensor:
        """Class logits without the margin, on the CPU: (N, D) -> (N, C) float32."""
        with torch.inference_mode():
            on_device = torch.from_numpy(embeddings).to(self.margin.weight.device)
            return self.margin.logits(on_device).cpu()

    def embed_split(self, split: str) -> NDArray[np.float32]:
        """Embeddings of all crops of `val` or `test`: (N, D) float32; all processes call it."""
        cache = self.held[split]
        mine = share(len(cache))
        if self.kept:
            features = self.kept.held(split)
            return gather_shares(self._run((features[i] for i in mine), True), len(cache))
        return gather_shares(self._run((cache[i] for i in mine), False), len(cache))

    def embed_crops(self, crops: list[CropFile]) -> NDArray[np.float32]:
        """Embeddings of crops as the runtime would see them; all processes call it."""
        canvases = (self.canvas(crops[i]) for i in share(len(crops)))
        return gather_shares(self._run(canvases, False), len(crops))

    def _run(self, rows: Iterable[NDArray[Any]], features: bool) -> NDArray[np.float32]:
        """Embed canvases or features batch by batch; the model must be in eval mode."""
        rows, found = iter(rows), []
        network = self.model.project if features else self.model
        device = self.margin.weight.device
        while batch := list(islice(rows, self.config.batch_size)):
            with torch.inference_mode():
                found.append(network(torch.from_numpy(np.stack(batch)).to(device)).cpu().numpy())
        if not found:
            return np.zeros((0, self.config.emb_dim), np.float32)
        return np.concatenate(found)

    def parts(self) -> nn.ModuleDict:
        """Network and class centres."""
        return nn.ModuleDict({"model": self.model, "margin": self.margin})

    def train_mode(self) -> None:
        """Training mode, except for a frozen backbone: its statistics must not move."""
        self.model.train()
        if self.config.freeze_backbone:
            self.model.backbone.eval()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Backbone with its own learning rates; head and class centres."""
        config = self.config
        started = config.pretrained or config.weights is not None
        return parameter_groups(
            self.model,
            self.margin,
            lr_scale=config.backbone_lr / config.lr or (0.2 if started else 1.0),
            weight_decay=weight_decay,
            head_decay=HEAD_DECAY,
            layer_decay=config.layer_decay,
        )

    def facts(self) -> dict[str, Any]:
        """The loss and the sizes of the splits."""
        config = self.config
        return {
            "loss": {
                "name": config.loss,
                "scale": config.scale,
                "margin": config.margin,
                "centres_per_class": config.sub_centers,
                "evaluation": "without margin",
            },
            "classes": list(self.classes),
            "crops": {name: len(crops) for name, crops in self.splits.items()},
            "left_out": len(self.skipped),
            "masks": self.masks,
        }

    def data_facts(self) -> dict[str, str]:
        """Classes, and which crops lie in which split."""
        digest = hashlib.sha256()
        for split, crops in self.splits.items():
            for crop in crops:
                name = crop.path.relative_to(self.config.data).as_posix()
                digest.update(f"{split}\0{crop.label}\0{name}\n".encode(errors="surrogateescape"))
        return {"classes": ", ".join(self.classes), "crops and splits": digest.hexdigest()[:16]}

    def epoch(self, step: int, batch_size: int) -> int:
        """Epochs of equally many steps; a pass over the crops may end within one."""
        return step // self.config.epoch_steps(len(self))

    def tag(self, done: int) -> str:
        """`ep005` after five epochs."""
        return f"ep{done // self.config.epoch_steps(len(self)):03d}"

    def extra_state(self) -> dict[str, Any]:
        """Figures of the epoch so far."""
        return {"seen": self.seen.state()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the figures of the epoch so far."""
        self.seen.load(state["seen"])


def _picture_bytes(picture: Picture) -> int:
    return picture.image.nbytes + (0 if picture.mask is None else picture.mask.nbytes)


def _array_bytes(image: Image) -> int:
    return image.nbytes
