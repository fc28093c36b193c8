"""The frozen teacher: an image classifier that answers with features and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.classifier.checkpoint import load_classifier, load_encoder, make_chain
from tk.train.classifier.model import ImageClassifier
from tk.train.embedder.features import weights_digest
from tk.train.student.config import StudentConfig


@dataclass(frozen=True)
class Teacher:
    """A classifier whose weights stay as they are.

    Attributes:
        model: in evaluation mode.
        image_spec: its canvas.
        order: (C,) which of its logits belongs to each class of the student; empty if it knows
            other classes, and only its features are of use.
        digest: of its weights.
    """

    model: ImageClassifier
    image_spec: ImageSpec
    order: tuple[int, ...]
    digest: str

    @property
    def feature_size(self) -> int:
        """Length T of its features."""
        return self.model.encoder.feature_size

    def answer(self, images: Tensor) -> Tensor:
        """What it says of pictures, without gradients.

        Args:
            images: (B, S, S, 3) uint8 RGB on its canvas, on its device.

        Returns:
            (B, T + C) float32: features, then logits in the student's order.
        """
        with torch.no_grad():
            feature = self.model.encoder(images)
            logits = self.model.head(feature).float()
            return torch.cat([feature, logits[:, list(self.order)]], dim=1)


def open_teacher(config: StudentConfig, classes: tuple[str, ...]) -> Teacher | None:
    """Load the teacher that the options name.

    Args:
        classes: of the student.

    Returns:
        the teacher on the CPU; None if there is none.

    Raises:
        TkError: not a classifier, a head without its backbone, or one of other classes whose
            logits are asked for.
    """
    if not config.has_teacher():
        return None
    model, spec, known = _load(config)
    if set(known) == set(classes):
        order = tuple(known.index(name) for name in classes)
    elif not config.kd_weight:
        order = ()
    else:
        raise TkError(
            "the teacher knows other classes than the data have",
            expected=", ".join(classes),
            found=", ".join(known),
            fix="train the teacher on these classes, or learn from its features alone: "
            "--kd_weight 0",
        )
    model.requires_grad_(False)
    return Teacher(model.eval(), spec, order, weights_digest(model))


def _load(config: StudentConfig) -> tuple[ImageClassifier, ImageSpec, tuple[str, ...]]:
    """Network, canvas and classes."""
    if config.teacher is not None:
        loaded = load_classifier(config.teacher)
        if not isinstance(loaded.model, ImageClassifier):
            raise TkError(
                f"{config.teacher} is a head alone: it cannot look at pictures",
                fix="--teacher_head with this file, and --teacher_backbone with its backbone",
            )
        return loaded.model, loaded.image_spec, loaded.classes
    assert config.teacher_head is not None and config.teacher_backbone is not None
    head = load_classifier(config.teacher_head)
    encoder, spec = load_encoder(config.teacher_backbone)
    return make_chain(head, encoder), spec, head.classes
