"""A student as a training task: crops, network, labels and teacher, evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tk.runtime.preprocess import Image, fit
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import CLASSIFIER, Architecture
from tk.train.classifier.heads import LINEAR, count_parameters, make_head
from tk.train.classifier.kd import kd_loss
from tk.train.classifier.model import ImageClassifier
from tk.train.embedder.data import find_crops
from tk.train.embedder.figures import class_figures, cross_entropy
from tk.train.embedder.groups import backbone_groups
from tk.train.embedder.split import write_splits
from tk.train.run.device import uses_bfloat16
from tk.train.run.distributed import gather_shares, is_main, share
from tk.train.run.task import TrainTask, decay_groups
from tk.train.student.answers import Answers
from tk.train.student.config import StudentConfig
from tk.train.student.data import StudentData, check_places
from tk.train.student.feature_loss import FeatureDistillation
from tk.train.student.label_loss import LabelLoss
from tk.train.student.teacher import open_teacher
from tk.train.student.views import SharedViews


class StudentTask(TrainTask):
    """Data, networks and losses of one run.

    Attributes:
        model: the student.
        teacher: frozen, no part of the checkpoint; None if labels are all there is.
    """

    name: ClassVar[str] = CLASSIFIER
    best_metric = "val_macro_f1"
    tie_metric: ClassVar[str] = "val_confidence"
    model: ImageClassifier

    def __init__(self, config: StudentConfig) -> None:
        self.config = config
        check_places(config)
        self.classes, _ = find_crops(config.data, merge=config.merge, exclude=config.exclude)
        self.teacher = open_teacher(config, self.classes)
        self.image_spec = config.image_spec()
        specs = [self.image_spec] + ([self.teacher.image_spec] if self.teacher else [])
        self.views = SharedViews(config.aug, config.area, specs)
        self.data = StudentData(config, self.classes, self.views.largest.height)
        encoder = ImageEncoder(
            config.model_id,
            config.img_size,
            # A resumed run has its weights in the checkpoint: the file may be gone.
            pretrained=config.pretrained and not config.resume,
            weights=None if config.resume else config.weights,
        )
        head = make_head(LINEAR, encoder.feature_size, len(self.classes))
        self.model = ImageClassifier(encoder, head)
        self.architecture = Architecture(
            "image", config.model_id, config.img_size, encoder.feature_size
        ).to_json()
        labels = [crop.label for crop in self.data.train.crops]
        self.label_loss = LabelLoss(
            labels, len(self.classes), smoothing=config.label_smoothing, balance=config.balance
        )
        self.features: FeatureDistillation | None = None
        if self.teacher and config.feature_weight:
            self.features = FeatureDistillation(encoder.feature_size, self.teacher.feature_size)
        self.answers: Answers | None = None
        if self.teacher and config.teacher_views:
            self.answers = Answers(config, self.teacher, self.data.train, self.views)

    def __len__(self) -> int:
        return len(self.data.train)

    def sample(self, index: int, epoch: int, rng: np.random.Generator) -> dict[str, Any]:
        """One view of a crop.

        Returns:
            `image` (S, S, 3) uint8 for the student, `label`, and of a teacher `teacher`: the same
            view on its canvas, or `answer` (T + C,) float32: what it said of this view before.
        """
        if self.answers:
            rng = self.answers.rng(index, epoch)
        canvases = self.views(self.data.train[index], rng)
        sample = {"image": canvases[0], "label": self.data.train.crops[index].label}
        if self.answers:
            return sample | {"answer": self.answers.of(index, epoch)}
        return sample | ({"teacher": canvases[1]} if self.teacher else {})

    def begin(self, device: torch.device) -> None:
        """Write the splits; bring the teacher to the device and ask it, if once is enough."""
        self.label_loss.to(device)
        if is_main():
            data = self.data
            write_splits(
                self.config.out / "splits.json", self.config.data, self.classes, data.splits
            )
        if self.teacher:
            self.teacher.model.to(device)
        if self.answers:
            self.answers.compute(device)

    def loss(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Weighted sum of what labels and teacher say; `agreement` with the teacher's answer."""
        config = self.config
        feature = self.model.encoder(batch["image"])
        logits = self.model.head(feature).float()
        by_label = self.label_loss(logits, batch["label"])
        total, parts = config.label_weight * by_label, {"label_loss": by_label}
        if self.teacher:
            answer = batch["answer"] if self.answers else self.teacher.answer(batch["teacher"])
            wanted, spoken = answer.split([self.teacher.feature_size, len(self.teacher.order)], 1)
            if config.kd_weight:
                parts["kd_loss"] = kd_loss(logits, spoken, config.temperature)
                total = total + config.kd_weight * parts["kd_loss"]
                same = logits.argmax(dim=1) == spoken.argmax(dim=1)
                parts["agreement"] = same.float().mean()
            if self.features:
                parts["feature_loss"] = self.features(feature, wanted)
                total = total + config.feature_weight * parts["feature_loss"]
        return {"loss": total, **parts}

    def evaluate(self) -> dict[str, Any]:
        """Figures of the validation split; {} if there is none."""
        return self.measure("val") if len(self.data.splits["val"]) else {}

    def measure(self, split: str) -> dict[str, Any]:
        """Figures of `val` or `test`."""
        logits = torch.from_numpy(self.predict(split, exact=False))
        labels = self.data.labels(split)
        probabilities = logits.softmax(dim=1).numpy()
        figures = {
            "loss": cross_entropy(logits, labels),
            "confidence": float(probabilities[np.arange(len(labels)), labels].mean()),
            **class_figures(labels, probabilities, self.classes),
        }
        return {f"{split}_{name}": value for name, value in figures.items()}

    def predict(self, split: str, *, exact: bool) -> NDArray[np.float32]:
        """Logits for the crops of `val` or `test`; all processes call it.

        Args:
            exact: in float32, as the model is exported; else in the precision of the training.

        Returns:
            (N, C) float32.
        """
        cache = self.data.held[split]
        canvases = (cache[i] for i in share(len(cache)))
        return gather_shares(self._run(self.model, canvases, exact), len(cache))

    def ask_teacher(self, split: str) -> NDArray[np.float32]:
        """The teacher's logits for the crops of a split, in the student's order: (N, C) float32."""
        assert self.teacher is not None and self.teacher.order
        teacher, read = self.teacher, self.data.read
        crops = self.data.splits[split]
        canvases = (fit(teacher.image_spec, read(crops[i]))[0] for i in share(len(crops)))
        found = self._run(teacher.model, canvases, exact=False)
        return gather_shares(found[:, list(teacher.order)], len(crops))

    def _run(
        self, network: ImageClassifier, rows: Iterable[Image], exact: bool
    ) -> NDArray[np.float32]:
        """Logits of canvases, batch by batch; the network must be in eval mode."""
        rows = iter(rows)
        found = [np.zeros((0, len(self.classes)), np.float32)]
        device = next(network.parameters()).device
        half = not exact and uses_bfloat16(self.config.precision, device)
        while batch := list(islice(rows, self.config.batch_size)):
            images = torch.from_numpy(np.stack(batch)).to(device)
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
            with torch.inference_mode(), autocast:
                found.append(network(images)[1].cpu().numpy())
        return np.concatenate(found)

    def parts(self) -> nn.ModuleDict:
        """The student, and the layer that makes its features comparable; not the teacher."""
        found: dict[str, nn.Module] = {"model": self.model}
        if self.features:
            found["features"] = self.features
        return nn.ModuleDict(found)

    def train_mode(self) -> None:
        """The student trains; the teacher, its batch norm too, stays as it is."""
        self.model.train()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Backbone; head and projection."""
        others: list[nn.Module] = [self.model.head]
        others += [self.features] if self.features else []
        return [
            *backbone_groups(self.model.encoder.backbone, weight_decay, 1.0, 1.0),
            *decay_groups(nn.ModuleList(others), weight_decay),
        ]

    def facts(self) -> dict[str, Any]:
        """Losses, sizes of the splits, the teacher."""
        config, data = self.config, self.data
        teacher = None
        if self.teacher:
            encoder = self.teacher.model.encoder
            teacher = {
                "model_id": encoder.model_id,
                "img_size": encoder.img_size,
                "parameters": count_parameters(self.teacher.model),
                "weights": self.teacher.digest,
                "views": config.teacher_views or "fresh in every epoch",
            }
        return {
            "classes": list(self.classes),
            "crops": {name: len(crops) for name, crops in data.splits.items()},
            "per_class": {
                name: np.bincount(data.labels(name), minlength=len(self.classes)).tolist()
                for name in data.splits
            },
            "unlabelled": len(data.train) - len(data.splits["train"]),
            "left_out": len(data.skipped),
            "parameters": count_parameters(self.model),
            "class_weights": self.label_loss.weight.tolist(),
            "teacher": teacher,
        }

    def data_facts(self) -> dict[str, str]:
        """Classes, crops, splits, and who the teacher is."""
        return self.data.facts() | {"teacher": self.teacher.digest if self.teacher else "none"}

    def epoch(self, step: int, batch_size: int) -> int:
        """Epochs of equally many steps; a pass over the crops may end within one."""
        return step // self.config.epoch_steps(len(self))

    def tag(self, done: int) -> str:
        """`ep005` after five epochs."""
        return f"ep{done // self.config.epoch_steps(len(self)):03d}"
