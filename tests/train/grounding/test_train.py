"""Runs of the small model: resume, result folder, export, runtime; and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.export.grounding.library import Library
from tests.train.grounding.scenes import settings, write_shapes
from tests.train.run.test_fit import same

from tk.export.grounding.load import load_model
from tk.export.sources.registry import find_source, open_source
from tk.export.write import write_bundle
from tk.runtime.boxes import clip, iou_matrix
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.text_detector import TextDetector, TextOptions
from tk.runtime.images import read_image
from tk.train.grounding.config import GroundingConfig
from tk.train.grounding.data import canvas_spec
from tk.train.grounding.train import GroundingTask, train_grounding
from tk.train.run.checkpoint import load_checkpoint, result_weights
from tk.train.run.folder import RunFolder
from tk.train.run.loop import fit, prepare

KEYS = ("model", "average", "optimizer", "rng", "best", "step")


class Interrupted(GroundingTask):
    """Gets a Ctrl-C in step 2."""

    def after_step(self, step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_train__resumed_run_has_the_same_weights(tmp_path: Path) -> None:
    write_shapes(tmp_path / "d")
    values = dict(steps=5, ema_decay=0.9, eval_every=2)
    train_grounding(settings(tmp_path, out=tmp_path / "whole", **values))
    config = settings(tmp_path, out=tmp_path / "broken", **values)
    prepare(config)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(config), config)
    assert load_checkpoint(tmp_path / "broken" / "checkpoint_last.pth")["step"] == 3
    assert not (tmp_path / "broken" / "model").exists()
    with pytest.raises(TkError, match="not finished"):
        find_source(str(tmp_path / "broken"))
    train_grounding(config.model_copy(update={"resume": "last"}))
    one, other = (
        load_checkpoint(tmp_path / name / "checkpoint_last.pth", "grounding-dino")
        for name in ("whole", "broken")
    )
    for key in KEYS:
        assert same(one[key], other[key]), key
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    file = tmp_path / "d" / "annotations.json"
    file.write_text(file.read_text().replace("red disc", "red coin"))
    with pytest.raises(TkError, match="the data changed"):
        train_grounding(config.model_copy(update={"resume": "last"}))


@pytest.mark.slow
def test_train__learns_and_the_runtime_finds_it(tmp_path: Path) -> None:
    """Train, export, detect: the whole way, and every step agrees with the one before."""
    write_shapes(tmp_path / "d")
    more = dict(steps=60, batch_size=4, lr=3e-3, warmup=5, rotate=0, scale=1.05, colour=0)
    config = settings(tmp_path, mirror=False, val_split=0, ema_decay=0.9, word_share=0, **more)
    best = train_grounding(config)
    losses = [r["loss"] for r in RunFolder(config.out).read_metrics() if "loss" in r]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])

    source = find_source(str(config.out))
    assert source.task == "grounding-dino" and source.path == config.out / "model"
    facts = json.loads((source.path / "training.json").read_text())
    assert facts["size"] == 128 and facts["prompt"] == "blue box . red disc ."
    # The folder holds the averaged weights, live norms folded into the library's frozen ones.
    loaded = load_model(source.path)
    weights = result_weights(load_checkpoint(best), "model")
    for name, value in (*loaded.network.named_parameters(), *loaded.network.named_buffers()):
        if name in weights:
            assert torch.equal(value, weights[name]), name
    sizes = json.loads((source.path / "preprocessor_config.json").read_text())
    assert sizes["size"] == {"shortest_edge": 128, "longest_edge": 128}
    norms = [name for name in weights if name.endswith("running_var")]
    assert set(norms) < set(dict(loaded.network.named_buffers()))
    assert "[unused1]" in loaded.tokenizer_json.decode()

    bundle = tmp_path / "bundle"
    write_bundle(open_source(config.out, 2, size=(128, 128)), bundle, tmp_path / "d" / "images")
    opened = Bundle.open(bundle, "detector")
    assert opened.manifest.image == canvas_spec(128)
    images = [read_image(tmp_path / "d" / "images" / f"{index}.png") for index in range(3)]
    every = DetectorOptions(box_threshold=0.2, nms_iou=1.0)
    detector = TextDetector(opened, every, TextOptions("blue box . red disc"))
    library = Library(source.path)
    outputs = library.forward(opened.manifest.image, images, "blue box . red disc.")
    answers = library.answers(outputs, images, 0.2, 0.25)
    assert sum(len(answer.boxes) for answer in answers) > 0
    for image, own, answer in zip(images, detector.detect(images), answers, strict=True):
        order = np.argsort(-answer.scores, kind="stable")
        boxes = clip(answer.boxes[order], image.shape[1], image.shape[0])
        np.testing.assert_allclose(own.scores, answer.scores[order], atol=1e-3)
        np.testing.assert_allclose(own.boxes, boxes, atol=0.2)

    # The evaluation of the training sees what the runtime sees.
    task = GroundingTask(config)
    task.network.load_state_dict(loaded.network.state_dict(), strict=False)
    task.network.eval()
    with torch.inference_mode():
        found = task.finder().find(images, task.book.all)
    plain = TextDetector(
        opened, DetectorOptions(box_threshold=0.0, most=1000), TextOptions("blue box . red disc")
    )
    for mine, theirs in zip(found, plain.detect(images), strict=True):
        assert mine.scores[0] == pytest.approx(theirs.scores[0], abs=1e-3)
        assert iou_matrix(mine.boxes[:2], theirs.boxes[:2]).max(axis=1).min() > 0.95
        assert mine.words[0] == theirs.words[0]


def test_train__starts_from_a_model_folder(tmp_path: Path) -> None:
    write_shapes(tmp_path / "d")
    first = settings(tmp_path, steps=1)
    train_grounding(first)
    values = dict(data=tmp_path / "d", out=tmp_path / "second", model=str(first.out), threads=1)
    values |= dict(size=128, steps=2, batch_size=2, device="cpu", backbone_lr=0.0)
    config = GroundingConfig(**values)
    assert (config.lr, config.dense_weight, config.batch_size) == (1e-4, 0.0, 2)
    train_grounding(config)
    before, after = (
        load_model(folder / "model").network.state_dict() for folder in (first.out, config.out)
    )
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and not any(name.startswith("model.backbone") for name in changed)
    assert not any(name.startswith("model.text_backbone") for name in changed)


KEY_BIASES = ("qkv.bias", "k_proj.bias", "key.bias", "in_proj_bias")
"""A softmax does not feel them: their gradient is rounding, which Adam makes as large as any."""


@pytest.mark.slow
def test_train__two_processes_equal_one(tmp_path: Path) -> None:
    """Every weight gets a gradient, or the processes would wait for each other; it is the same.

    The start is a folder: with random weights batch norms are live and the dense losses are divided
    by the places that were chosen, and each process has its own of both.
    """
    write_shapes(tmp_path / "d")
    train_grounding(settings(tmp_path, steps=1))
    still: dict[str, Any] = dict(rotate=0, scale=1, colour=0.2, subset_share=0, word_share=0)
    still |= dict(model=str(tmp_path / "run"), lr=1e-3, clip=1.0, any_share=0, half=True)
    one = settings(tmp_path, out=tmp_path / "one", **still)
    two = settings(tmp_path, out=tmp_path / "two", gpus=2, **still)
    train_grounding(one)
    train_grounding(two)
    states = [
        load_checkpoint(run.out / "checkpoint_last.pth", "grounding-dino") for run in (one, two)
    ]
    assert [len(state["rng"]) for state in states] == [1, 2]
    first = load_model(tmp_path / "run" / "model").network.state_dict()
    moved = 0
    for name, value in states[0]["model"].items():
        if name.endswith(KEY_BIASES):
            continue
        assert torch.allclose(value, states[1]["model"][name], rtol=1e-3, atol=5e-5), name
        moved += not torch.equal(value, first[name])
    assert moved > 100
    records = [[r for r in RunFolder(run.out).read_metrics() if "loss" in r] for run in (one, two)]
    assert len(records[0]) == 3
    for own, other in zip(*records, strict=True):
        for key in ("loss", "grad_norm"):
            assert own[key] == pytest.approx(other[key], rel=1e-3), key
    stored = load_file(two.out / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    opened = load_model(two.out / "model").network.state_dict()
    for name, value in states[1]["model"].items():
        if name in opened:
            assert opened[name].dtype == value.dtype, name
            assert torch.equal(opened[name], value.half().to(value.dtype)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="no/such/folder"), "no model folder"),
        (dict(size=64), "cannot work on a canvas of 64"),
        (dict(any_word="why? not"), "cannot be a phrase"),
    ],
)
def test_train__bad_options(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_shapes(tmp_path / "d")
    with pytest.raises(TkError, match=message):
        train_grounding(settings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=[]), "lists no images"),
        (dict(categories=[], annotations=[]), "no categories"),
        (dict(categories=[dict(id=1, name="a.b"), dict(id=2, name="c")]), "cannot be a phrase"),
        (dict(categories=[dict(id=1, name=""), dict(id=2, name="c")]), "cannot be a phrase"),
    ],
)
def test_train__bad_data(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write_shapes(tmp_path / "d") / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(TkError, match=message):
        train_grounding(settings(tmp_path))
    assert not (tmp_path / "run").exists()


def test_train__pictures_without_objects(tmp_path: Path) -> None:
    """Pure background is data too; figures need objects."""
    file = write_shapes(tmp_path / "d") / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[])))
    path = train_grounding(settings(tmp_path))
    assert path.name == "checkpoint_last.pth" and (path.parent / "model" / "config.json").is_file()


def test_train__a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_shapes(tmp_path / "d")
    (tmp_path / "m").mkdir()
    with pytest.raises(TkError, match=r"no config\.json"):
        train_grounding(settings(tmp_path, model=str(tmp_path / "m")))
    for kind in ("bert", "sam2"):  # the second has no tokenizer, which is not what is wrong
        (tmp_path / "m" / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(TkError, match="not a GroundingDINO") as caught:
            train_grounding(settings(tmp_path, model=str(tmp_path / "m")))
        assert kind in str(caught.value)
