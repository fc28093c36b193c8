"""Classifiers and backbones in files: checkpoints that state the architecture they need.

A *head* takes features of one backbone only, so its checkpoint names that backbone by the digest of
its weights. An *image classifier* holds backbone and head. An *encoder* is a backbone alone, what a
head and it make a chain with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec, spec_to_json
from tk.train.backbone import ImageEncoder
from tk.train.classifier.heads import LINEAR, HeadShape, make_head
from tk.train.classifier.model import FeatureClassifier, ImageClassifier
from tk.train.embedder.features import weights_digest
from tk.train.run.checkpoint import (
    classes_of,
    image_spec_of,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

CLASSIFIER = "classifier"
ENCODER = "encoder"
"""Tasks in the checkpoints."""


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a classifier or an encoder before its weights are loaded.

    Attributes:
        input: `feature`: a head alone; `image`: a backbone is part of it.
        model_id: timm's name of the backbone; for a head, of the one whose features it takes.
        img_size: side of the canvas of that backbone, pixels.
        features: length F of the feature.
        head: hidden layers of the head.
        backbone_sha256: digest (`weights_digest`) of the weights of `ImageEncoder` whose features a
            head takes; empty for an image classifier, which has its own.
    """

    input: Literal["feature", "image"]
    model_id: str
    img_size: int
    features: int
    head: HeadShape = LINEAR
    backbone_sha256: str = ""

    def to_json(self) -> str:
        """Text for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        head = values.pop("head")
        return cls(head=HeadShape(tuple(head["hidden"]), head["dropout"]), **values)


@dataclass(frozen=True)
class Loaded:
    """A classifier from a file, in evaluation mode on the CPU.

    Attributes:
        model: `FeatureClassifier` or `ImageClassifier`, as `architecture.input` says.
        classes: names in the order of the logits.
        image_spec: how a picture becomes the input of the backbone.
        state: the whole checkpoint.
    """

    model: FeatureClassifier | ImageClassifier
    architecture: Architecture
    classes: tuple[str, ...]
    image_spec: ImageSpec
    state: dict[str, Any]


def save_classifier(
    path: Path,
    model: FeatureClassifier | ImageClassifier,
    architecture: Architecture,
    *,
    classes: tuple[str, ...],
    image_spec: ImageSpec,
    config: dict[str, Any],
) -> None:
    """Write a classifier that no training loop of tk wrote.

    Args:
        config: what it was trained with, plain JSON values.
    """
    save_checkpoint(path, _state(CLASSIFIER, model, architecture, classes, image_spec, config))


def save_encoder(path: Path, encoder: ImageEncoder, image_spec: ImageSpec) -> None:
    """Write a backbone alone."""
    architecture = Architecture(
        "image",
        encoder.model_id,
        encoder.img_size,
        encoder.feature_size,
        backbone_sha256=weights_digest(encoder),
    )
    save_checkpoint(path, _state(ENCODER, encoder, architecture, (), image_spec, {}))


def _state(
    task: str,
    model: Any,
    architecture: Architecture,
    classes: tuple[str, ...],
    image_spec: ImageSpec,
    config: dict[str, Any],
) -> dict[str, Any]:
    return {
        "task": task,
        "architecture": architecture.to_json(),
        "config": json.dumps({"model_id": architecture.model_id, **config}),
        "classes": json.dumps(classes, ensure_ascii=False),
        "image_spec": json.dumps(spec_to_json(image_spec)),
        "crop_spec": "",
        "step": 0,
        "epoch": 0,
        "model": dict(model.state_dict()),
    }


def load_classifier(path: Path) -> Loaded:
    """Rebuild a classifier: a head, a chain or a student.

    Raises:
        TkError: not a checkpoint of a classifier, or a damaged one.
    """
    state = load_checkpoint(path, CLASSIFIER)
    architecture, classes = _architecture(state, path), classes_of(state)
    head = make_head(architecture.head, architecture.features, len(classes))
    model: FeatureClassifier | ImageClassifier
    if architecture.input == "feature":
        model = FeatureClassifier(head)
    else:
        model = ImageClassifier(ImageEncoder(architecture.model_id, architecture.img_size), head)
    load_weights(model, state, path)
    return Loaded(model.eval(), architecture, classes, image_spec_of(state), state)


def load_encoder(path: Path) -> tuple[ImageEncoder, ImageSpec]:
    """Rebuild a backbone, in evaluation mode on the CPU.

    Raises:
        TkError: not a checkpoint of an encoder, or a damaged one.
    """
    state = load_checkpoint(path, ENCODER)
    architecture = _architecture(state, path)
    encoder = ImageEncoder(architecture.model_id, architecture.img_size)
    load_weights(encoder, state, path)
    return encoder.eval(), image_spec_of(state)


def make_chain(head: Loaded, encoder: ImageEncoder) -> ImageClassifier:
    """Backbone and head in one network.

    Args:
        head: of `load_classifier`, with `feature` as its input.
        encoder: the backbone whose features it was trained on.

    Raises:
        TkError: it is another backbone; its features would fit by their length and mean nothing.
    """
    expected = head.architecture
    if expected.input != "feature":
        raise TkError(
            "this classifier has a backbone already", fix="give a head (linear, teacher, student)"
        )
    found = weights_digest(encoder)
    # The weights of a CNN are the same at every size of the canvas; its features are not.
    where = (encoder.model_id, encoder.img_size)
    if (found, *where) != (expected.backbone_sha256, expected.model_id, expected.img_size):
        raise TkError(
            "the head was trained on features of another backbone",
            expected=f"{expected.model_id} at {expected.img_size} pixels, weights "
            f"{expected.backbone_sha256[:12]}",
            found=f"{encoder.model_id} at {encoder.img_size} pixels, weights {found[:12]}",
            fix="give the backbone that was saved beside the head",
        )
    return ImageClassifier(encoder, head.model.head).eval()


def _architecture(state: dict[str, Any], path: Path) -> Architecture:
    text = state.get("architecture")
    if not text:
        raise TkError(f"{path} does not say which architecture its weights are for")
    return Architecture.from_json(text)
