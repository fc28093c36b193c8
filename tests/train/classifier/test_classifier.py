"""Heads, chains and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tk.runtime.errors import TkError
from tk.runtime.preprocess import ImageSpec
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import (
    Architecture,
    load_classifier,
    load_encoder,
    make_chain,
    save_classifier,
    save_encoder,
)
from tk.train.classifier.heads import (
    LINEAR,
    STUDENT,
    TEACHER,
    HeadShape,
    count_parameters,
    make_head,
)
from tk.train.classifier.model import FeatureClassifier, ImageClassifier
from tk.train.embedder.features import weights_digest

SMALL = "mobilenetv3_small_050"
CLASSES = ("pits", "crack", "scratch", "scale")
SPEC = ImageSpec(32, 32, anchor="center")


@pytest.mark.parametrize(
    ("shape", "parameters"), [(LINEAR, 1540), (TEACHER, 57796), (STUDENT, 26852)]
)
def test_head__has_exactly_the_seeds_parameters(shape: HeadShape, parameters: int) -> None:
    assert count_parameters(make_head(shape, 384, 4)) == parameters


def test_head__dropout_follows_the_first_relu_alone() -> None:
    layers = [type(layer) for layer in make_head(TEACHER, 384, 4)]
    assert layers == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]


@pytest.fixture
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(SMALL, 32).eval()


def _write_head(path: Path, encoder: ImageEncoder) -> FeatureClassifier:
    model = FeatureClassifier(make_head(TEACHER, encoder.feature_size, 4)).eval()
    architecture = Architecture(
        "feature", SMALL, 32, encoder.feature_size, TEACHER, weights_digest(encoder)
    )
    save_classifier(path, model, architecture, classes=CLASSES, image_spec=SPEC, config={"lr": 1.0})
    return model


def test_checkpoint__head_and_backbone_make_a_chain(tmp_path: Path, encoder: ImageEncoder) -> None:
    model = _write_head(tmp_path / "teacher.pth", encoder)
    save_encoder(tmp_path / "backbone.pth", encoder, SPEC)
    head = load_classifier(tmp_path / "teacher.pth")
    again, spec = load_encoder(tmp_path / "backbone.pth")
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    probabilities, logits = make_chain(head, again)(images)
    expected = model.head(encoder(images))
    assert torch.equal(logits, expected)
    assert torch.equal(probabilities, expected.softmax(1))
    assert (head.classes, head.image_spec, spec) == (CLASSES, SPEC, SPEC)


def test_checkpoint__image_classifier(tmp_path: Path, encoder: ImageEncoder) -> None:
    model = ImageClassifier(encoder, make_head(LINEAR, encoder.feature_size, 4)).eval()
    architecture = Architecture("image", SMALL, 32, encoder.feature_size)
    path = tmp_path / "student.pth"
    save_classifier(path, model, architecture, classes=CLASSES, image_spec=SPEC, config={})
    loaded = load_classifier(path)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(loaded.model(images)[1], model(images)[1])


def test_chain__refuses_another_backbone(tmp_path: Path, encoder: ImageEncoder) -> None:
    _write_head(tmp_path / "teacher.pth", encoder)
    torch.manual_seed(1)
    with pytest.raises(TkError, match="features of another backbone"):
        make_chain(load_classifier(tmp_path / "teacher.pth"), ImageEncoder(SMALL, 32).eval())


def test_chain__refuses_the_same_weights_at_another_canvas(
    tmp_path: Path, encoder: ImageEncoder
) -> None:
    """The weights of a CNN do not depend on it, but its features do."""
    _write_head(tmp_path / "teacher.pth", encoder)
    larger = ImageEncoder(SMALL, 96).eval()
    larger.load_state_dict(encoder.state_dict())
    with pytest.raises(TkError, match="another backbone") as caught:
        make_chain(load_classifier(tmp_path / "teacher.pth"), larger)
    assert "at 96 pixels" in str(caught.value) and "at 32 pixels" in str(caught.value)


def test_checkpoint__backbone_is_no_classifier(tmp_path: Path, encoder: ImageEncoder) -> None:
    save_encoder(tmp_path / "backbone.pth", encoder, SPEC)
    with pytest.raises(TkError, match="another task"):
        load_classifier(tmp_path / "backbone.pth")
