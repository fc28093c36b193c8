"""Heads, chains and students in `tk export`, beside PyTorch on the same canvases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.export.small_models import write_images
from typer.testing import CliRunner

from tk.export.cli import COMMANDS
from tk.export.request import Request
from tk.export.sources.registry import find_source, open_source
from tk.export.write import write_bundle
from tk.runtime.backends.base import Arrays
from tk.runtime.bundle import PARITY, PROBE, Bundle
from tk.runtime.errors import TkError
from tk.runtime.images import find_images, read_image
from tk.runtime.preprocess import ImageSpec, fit
from tk.runtime.verify import verify
from tk.train.backbone import ImageEncoder
from tk.train.classifier.checkpoint import Architecture, save_classifier, save_encoder
from tk.train.classifier.heads import LINEAR, STUDENT, HeadShape, make_head
from tk.train.classifier.model import FeatureClassifier, ImageClassifier
from tk.train.embedder.features import weights_digest
from tk.train.run.checkpoint import load_checkpoint, save_checkpoint

BACKBONE, SIDE = "test_resnet", 32
CLASSES = ("pits", "crack", "scratch")
SPEC = ImageSpec(SIDE, SIDE, anchor="center")


def small_encoder(seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(BACKBONE, SIDE).eval()


def write_head(path: Path, encoder: ImageEncoder, shape: HeadShape = STUDENT) -> FeatureClassifier:
    torch.manual_seed(3)
    model = FeatureClassifier(make_head(shape, encoder.feature_size, len(CLASSES))).eval()
    architecture = Architecture(
        "feature", BACKBONE, SIDE, encoder.feature_size, shape, weights_digest(encoder)
    )
    save_classifier(path, model, architecture, classes=CLASSES, image_spec=SPEC, config={})
    return model


def write_student(path: Path, encoder: ImageEncoder) -> ImageClassifier:
    torch.manual_seed(4)
    model = ImageClassifier(encoder, make_head(LINEAR, encoder.feature_size, len(CLASSES))).eval()
    architecture = Architecture("image", BACKBONE, SIDE, encoder.feature_size)
    config = {"pretrained": False}
    save_classifier(path, model, architecture, classes=CLASSES, image_spec=SPEC, config=config)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head in a run, its backbone, another one, a student, and pictures."""
    folder = tmp_path_factory.mktemp("classifiers")
    encoder = small_encoder()
    write_head(folder / "run" / "models" / "student" / "seed0.pth", encoder)
    save_encoder(folder / "run" / "backbone.pth", encoder, SPEC)
    save_encoder(folder / "other.pth", small_encoder(1), SPEC)
    write_student(folder / "student" / "checkpoint_best.pth", small_encoder(2))
    write_images(folder / "images", 34, side=24)
    return folder


def assert_near(found: Arrays, logits: torch.Tensor, tolerance: float) -> None:
    own = {name: np.asarray(value, np.float32) for name, value in found.items()}
    np.testing.assert_allclose(own["logits"], logits.numpy(), atol=tolerance)
    shares = logits.softmax(1).numpy()
    np.testing.assert_allclose(own["probabilities"], shares, atol=tolerance / 5)


def canvases(world: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    files = find_images(world / "images")[:5]
    return np.stack([fit(SPEC, read_image(file))[0] for file in files])


HEAD = Path("run") / "models" / "student" / "seed0.pth"


def test_head__real_features_of_its_run(world: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    with torch.inference_mode():
        rows = encoder(torch.from_numpy(canvases(world))).numpy()
    run = world / "run"
    np.save(run / "features.npy", np.repeat(rows, 8, axis=0))
    about = {"key": {"weights": weights_digest(encoder)}}
    (run / "features.json").write_text(json.dumps(about))
    lines = write_bundle(
        open_source(world / HEAD, 4),
        tmp_path / "b",
        None,
        request=Request(precisions=("fp16", "bf16", "int8")),
    )
    assert lines[0] == "compared on 40 features: features.npy of the run, features of real images"
    assert not any(line.startswith("FAIL") for line in lines)

    bundle = Bundle.open(tmp_path / "b", "classifier")
    assert bundle.manifest.classes == CLASSES and bundle.manifest.settings["hidden"] == [64, 32]
    with bundle.session(precision="fp32", backend="onnxruntime-cpu") as session:
        found = session.run({"feature": rows})
    torch.manual_seed(3)
    layers = make_head(STUDENT, rows.shape[1], 3)
    with torch.inference_mode():
        expected = layers(torch.from_numpy(rows))
    assert_near(found, expected, 1e-5)
    assert all(row.passed for row in verify(tmp_path / "b")[1])
    # Features of another backbone beside it are not taken for its own.
    (run / "features.json").write_text(json.dumps({"key": {"weights": "0"}}))
    assert "random ones" in open_source(world / HEAD, 4).rows_from


def test_head__features_from_a_file(world: Path, tmp_path: Path) -> None:
    model = open_source(world / HEAD, 2)
    assert model.rows is not None
    width = model.rows.shape[1]
    np.save(tmp_path / "own.npy", np.ones((3, width), np.float32))
    assert write_bundle(model, tmp_path / "b", tmp_path / "own.npy")[0].endswith("own.npy")
    assert json.loads((tmp_path / "b" / PARITY).read_text())["note"].startswith("compared on 3")
    with np.load(tmp_path / "b" / PROBE) as probe:
        assert probe["input/feature"].tolist() == np.ones((2, width)).tolist()


@pytest.mark.parametrize("kind", ["images", "shape", "not finite", "no array", "few"])
def test_head__inputs_that_are_no_features(kind: str, world: Path, tmp_path: Path) -> None:
    path, words, request = tmp_path / "own.npy", "does not hold features", Request()
    model = open_source(world / HEAD, 2)
    assert model.rows is not None
    width = model.rows.shape[1]
    np.save(path, np.zeros((2, width + (kind == "shape")), np.float32))
    if kind == "images":
        path, words = world / "images", "not images"
    elif kind == "not finite":
        np.save(path, np.full((2, width), np.nan, np.float32))
    elif kind == "no array":
        path.write_bytes(b"nothing")
        words = "cannot be read as an array"
    elif kind == "few":
        words, request = "too few features", Request(precisions=("int8",))
    with pytest.raises(TkError, match=words):
        write_bundle(model, tmp_path / "b", path, request=request)
    assert not (tmp_path / "b").exists()


def test_chain__pixels_to_probabilities_in_one_graph(world: Path, tmp_path: Path) -> None:
    arguments = [
        *(str(world / HEAD), str(tmp_path / "b"), "--backbone", str(world / "run/backbone.pth")),
        *("--images", str(world / "images"), "--precision", "fp32,int8", "--max-batch", "5"),
    ]
    answer = CliRunner().invoke(COMMANDS["export"], arguments, catch_exceptions=False)
    assert answer.exit_code == 0 and "int8: " in answer.output
    pictures = canvases(world)
    bundle = Bundle.open(tmp_path / "b")
    with bundle.session(precision="fp32", backend="onnxruntime-cpu") as session:
        found = session.run({"image": pictures})
    head = write_head(tmp_path / "again.pth", small_encoder())
    with torch.inference_mode():
        expected = head.head(small_encoder()(torch.from_numpy(pictures)))
    assert_near(found, expected, 1e-4)
    facts = bundle.manifest
    assert facts.settings["input"] == "image" and "backbone test_resnet" in facts.licence
    assert facts.source["backbone"]["weights"] == weights_digest(small_encoder())
    assert all(row.passed for row in verify(tmp_path / "b")[1] if row.judged)


def test_chain__another_backbone_is_refused(world: Path) -> None:
    with pytest.raises(TkError, match="features of another backbone"):
        open_source(world / HEAD, 2, backbone=world / "other.pth")
    with pytest.raises(TkError, match="has a backbone already"):
        open_source(world / "student", 2, backbone=world / "other.pth")
    with pytest.raises(TkError, match="another task"):
        open_source(world / HEAD, 2, backbone=world / HEAD)


def test_student__run_folder(world: Path, tmp_path: Path) -> None:
    assert find_source(str(world / "student")).task == "classifier"
    model = open_source(world / "student", 3)
    assert model.licence == "own weights, trained from scratch"
    assert not any("FAIL" in line for line in write_bundle(model, tmp_path / "b", world / "images"))
    with pytest.raises(TkError, match="none are given"):
        write_bundle(model, tmp_path / "c", None)


def test_source__a_backbone_alone_and_a_whole_run(world: Path) -> None:
    with pytest.raises(TkError, match="backbone alone") as caught:
        open_source(world / "other.pth", 1)
    assert "--backbone" in str(caught.value)
    (world / "whole" / "models" / "teacher").mkdir(parents=True)
    with pytest.raises(TkError, match="holds many models"):
        open_source(world / "whole", 1)
    state = load_checkpoint(world / HEAD) | {"task": "detector"}
    save_checkpoint(world / "detector.pth", state)
    with pytest.raises(TkError, match="--backbone means nothing"):
        open_source(world / "detector.pth", 1, backbone=world / "other.pth")
