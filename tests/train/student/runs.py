"""A small data set, a small teacher and small runs that several test files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.train.embedder.test_train import write_digits

from tk.runtime.preprocess import ImageSpec
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import Architecture, save_classifier, save_encoder
from tk.train.classifier.heads import LINEAR, make_head
from tk.train.classifier.model import FeatureClassifier, ImageClassifier
from tk.train.embedder.data import find_crops
from tk.train.embedder.features import weights_digest
from tk.train.student.config import StudentConfig


def options(root: Path, out: Path, **more: Any) -> StudentConfig:
    """A run of a few seconds."""
    values: dict[str, Any] = dict(
        data=root, out=out, model_id="test_vit", pretrained=False, img_size=32, aug="light",
        batch_size=16, epochs=2, lr=2e-3, min_per_class=3, device="cpu", threads=1,
    )  # fmt: skip
    return StudentConfig(**(values | more))


def digits(root: Path, count: int = 150) -> Path:
    """Crops of ten classes."""
    return write_digits(root, count)


def write_teacher(folder: Path, classes: tuple[str, ...], size: int = 48) -> Path:
    """A chain with random weights: `image.pth` (whole), `head.pth` and `backbone.pth`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    encoder = ImageEncoder("test_resnet", size)
    head = make_head(LINEAR, encoder.feature_size, len(classes))
    spec = ImageSpec(size, size, anchor="center")
    about = ("test_resnet", size, encoder.feature_size, LINEAR)
    digest = weights_digest(encoder)
    more: dict[str, Any] = {"classes": classes, "image_spec": spec, "config": {}}
    image = Architecture("image", *about)
    save_classifier(folder / "image.pth", ImageClassifier(encoder, head), image, **more)
    feature = Architecture("feature", *about, backbone_sha256=digest)
    save_classifier(folder / "head.pth", FeatureClassifier(head), feature, **more)
    save_encoder(folder / "backbone.pth", encoder, spec)
    return folder


def classes_of_crops(root: Path) -> tuple[str, ...]:
    """Names of the classes under a folder."""
    return find_crops(root)[0]
