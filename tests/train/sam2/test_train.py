"""Runs of a few steps: exact resume, the folder they leave, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.train.sam2.scenes import (
    change_annotations,
    miniature,
    save_model,
    settings,
    write_scenes,
)
from torch import Tensor
from transformers import Sam2Model

from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.images import read_image
from tk.runtime.preprocess import fit
from tk.train.run.checkpoint import load_checkpoint
from tk.train.run.folder import RunFolder
from tk.train.sam2.model import Normalisation, best_masks, predict, side_of
from tk.train.sam2.open import open_model
from tk.train.sam2.train import Sam2Task, train_sam2
from tk.train.scenes.coco import read_scenes


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    miniature(monkeypatch)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Interrupted(Sam2Task):
    """Asks itself to stop."""

    stop_at = 3

    def after_step(self, step: int) -> None:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


def test_train__resumed_run_equals_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "d")
    one = settings(tmp_path, out=tmp_path / "one", eval_every=3, all_masks=0.5)
    two = one.model_copy(update={"out": tmp_path / "two"})
    train_sam2(one)
    with monkeypatch.context() as patch:
        patch.setattr("tk.train.sam2.train.Sam2Task", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_sam2(two)
    assert not (two.out / "model").exists()
    assert load_checkpoint(two.out / "checkpoint_interrupt.pth")["step"] == 4
    train_sam2(two.model_copy(update={"resume": "last"}))
    for name in ("model", "average", "optimizer"):
        states = [load_checkpoint(run.out / "checkpoint_last.pth")[name] for run in (one, two)]
        for own, other in zip(_tensors(states[0]), _tensors(states[1]), strict=True):
            assert torch.equal(own, other)
    assert RunFolder(one.out).metrics.read_bytes() == RunFolder(two.out).metrics.read_bytes()
    weights = [load_file(run.out / "model" / "model.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # Nothing is left to do, and the folder stays as it is.
    before = (two.out / "model" / "model.safetensors").stat().st_mtime_ns
    train_sam2(two.model_copy(update={"resume": "last"}))
    assert (two.out / "model" / "model.safetensors").stat().st_mtime_ns == before


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [tensor for key in value for tensor in _tensors(value[key])]
    if isinstance(value, list):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def test_train__to_model_folder_to_bundle_to_the_librarys_masks(tmp_path: Path) -> None:
    """Everything a user does, on weights that were trained until masks appear."""
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    folder = write_scenes(tmp_path / "d")
    config = settings(tmp_path, steps=80, lr=4e-3, warmup=10, jitter=0.02, half=True)
    best = train_sam2(config)
    state = load_checkpoint(best)
    assert state["task"] == "sam2" and json.loads(state["classes"]) == ["disc", "bar"]
    figures = [row for row in RunFolder(config.out).read_metrics() if row.get("event") == "eval"]
    assert figures[-1]["mask_iou"] > 0.3
    assert {"focal", "dice", "iou", "score", "overlap"} <= RunFolder(config.out).read_metrics()[
        0
    ].keys()
    assert (
        load_file(config.out / "model" / "model.safetensors")["no_memory_embedding"].dtype
        == torch.float16
    )

    model = open_source(config.out, 2)
    assert model.image == Sam2Task(config).image_spec
    lines = write_bundle(model, tmp_path / "bundle", folder / "images")
    assert not any(line.startswith("FAIL") for line in lines)
    segmenter = Segmenter(Bundle.open(tmp_path / "bundle", "segmenter"), threads=1)
    loaded: Any = Sam2Model.from_pretrained(config.out / "model", dtype=torch.float32)
    library: Sam2Model = loaded.eval()
    processor: Any = Sam2ImageProcessor.from_pretrained(config.out / "model")
    assert processor.size["height"] == 128

    areas = []
    for scene in read_scenes(folder).scenes:
        image = read_image(scene.path)
        boxes = np.stack([thing.box for thing in scene.things])
        canvas, placement = fit(model.image, image)
        with torch.inference_mode():
            pixels = Normalisation().pixels(torch.from_numpy(canvas)[None])
            prompts = torch.from_numpy(placement.to_canvas(boxes))[None]
            logits, iou = best_masks(predict(library, pixels, prompts))
        full = processor.post_process_masks([logits[None]], [image.shape[:2]])[0][0].numpy()
        (found,) = segmenter.segment([image], [boxes])
        np.testing.assert_allclose(found.iou, iou.numpy(), atol=1e-4)
        for own, whole in zip(found.masks, full, strict=True):
            h, w = own.pixels.shape
            there = whole[own.y : own.y + h, own.x : own.x + w]
            union = int((own.pixels | there).sum())
            assert int((own.pixels & there).sum()) >= 0.999 * union
            areas.append(own.area / own.pixels.size)
    assert 0.1 < np.mean(areas) < 0.9


def test_train__from_a_folder_with_its_encoder_frozen(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    before = save_model(tmp_path / "start").state_dict()
    (tmp_path / "start" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.5]}'
    )
    config = settings(
        tmp_path, model=str(tmp_path / "start"), freeze_encoder=True, loss_scale=2, steps=3
    )
    assert (config.lr, config.focal_weight, config.focal_alpha) == (2e-5, 20, 0.25)
    own = settings(tmp_path)
    assert (own.lr, own.focal_alpha, settings(tmp_path, lr=1.0).lr) == (1e-3, 0.5, 1.0)
    train_sam2(config.model_copy(update={"lr": 1e-2}))
    after = load_file(config.out / "model" / "model.safetensors")
    kept = json.loads((config.out / "model" / "preprocessor_config.json").read_text())
    assert kept["image_mean"] == [0.5] * 3 and kept["size"] == {"height": 128, "width": 128}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith("vision_encoder") for name in changed)
    assert any(name.startswith("mask_decoder.conv_s0") for name in changed)
    assert not any("prompt_encoder.mask_embed" in name for name in changed)
    # A run folder stands for its result.
    model, normalisation = open_model(str(config.out), 0)
    assert torch.equal(model.state_dict()["no_memory_embedding"], after["no_memory_embedding"])
    assert normalisation == Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.5))


def test_small__both_copies_of_the_position_matrix_are_equal() -> None:
    """The export reads one of them for boxes and pixels alike."""
    torch.manual_seed(0)
    state = open_model("small", 128)[0].state_dict()
    shared = state["prompt_encoder.shared_embedding.positional_embedding"]
    assert torch.equal(state["shared_image_embedding.positional_embedding"], shared)


def test_open__another_canvas_for_the_same_weights(tmp_path: Path) -> None:
    before = save_model(tmp_path / "start").state_dict()
    model, _ = open_model(str(tmp_path / "start"), 192)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    boxes = torch.tensor([[[10.0, 10, 100, 90]]])
    found = predict(model, torch.zeros(1, 3, 192, 192), boxes)
    assert found.logits.shape == (1, 3, 48, 48) and side_of(model) == 192
    for given in (str(tmp_path / "start"), "small"):
        with pytest.raises(TkError, match="canvas of this size") as caught:
            open_model(given, 176)
        assert caught.value.fix == "--size 192"


def test_begin__the_model_of_a_replaced_run_is_gone(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    stale = tmp_path / "run" / "model" / "config.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    Sam2Task(settings(tmp_path)).begin(torch.device("cpu"))
    assert not stale.exists()


def test_task__detail_of_random_weights_learns_slowly(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    task = Sam2Task(settings(tmp_path))
    names = {id(p): name for name, p in task.network.named_parameters() if p.requires_grad}
    grouped = [(names[id(p)], g) for g in task.parameter_groups(0.1) for p in g["params"]]
    assert sorted(name for name, _ in grouped) == sorted(names.values())
    slow = {name.rsplit(".", 1)[0] for name, group in grouped if group["lr_scale"] == 0.2}
    laterals = {f"vision_encoder.neck.convs.{index}" for index in range(4)}
    assert slow == {*laterals, "mask_decoder.conv_s0", "mask_decoder.conv_s1"}
    decayed = {name for name, group in grouped if group["weight_decay"]}
    assert "mask_decoder.conv_s0.weight" in decayed and "mask_decoder.conv_s0.bias" not in decayed

    save_model(tmp_path / "start")
    started = Sam2Task(settings(tmp_path, model=str(tmp_path / "start")))
    assert {group["lr_scale"] for group in started.parameter_groups(0.1)} == {1.0}


def test_task__fills_boxes_where_told(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    losses = []
    for fill in ({}, {"fill_box": True}, {"fill_box": False}):
        torch.manual_seed(0)
        task = Sam2Task(settings(tmp_path, **fill))
        sample = task.sample(0, 0, np.random.default_rng(0))
        losses.append(float(task.loss(task.collate([sample]), 0)["dice"].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_train__needs_masks(tmp_path: Path) -> None:
    change_annotations(write_scenes(tmp_path / "d"), lambda item: item.pop("segmentation"))
    with pytest.raises(TkError, match="has a mask"):
        train_sam2(settings(tmp_path))


def test_train__boxes_without_area_and_empty_masks(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d")

    def spoil(item: dict[str, Any]) -> None:
        if item["category_id"] == 1:
            item["bbox"][2] = 0
        elif item["image_id"] == 0:
            item["segmentation"] = [[0, 0, 0, 0, 0, 0]]

    change_annotations(folder, spoil)
    task = Sam2Task(settings(tmp_path, val_split=0))
    assert len(task) == 3 and task.store.skipped == 1
    change_annotations(folder, lambda item: item["bbox"].__setitem__(3, 0))
    with pytest.raises(TkError, match="has a mask"):
        train_sam2(settings(tmp_path))


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("sam2.1_hiera_tiny.pt", "cannot start from the file", "load_original"),
        ("w/model.safetensors", "cannot start from the file", "--model "),
        ("other", "not a folder of SAM-2", ""),
        ("empty", "has no config.json", ""),
        ("torn", "cannot be loaded", "whole"),
        ("partial", "lacks", ""),
        ("nowhere/at/all", "does not exist", ""),
    ],
)
def test_open__what_cannot_be_started_from(
    tmp_path: Path, name: str, message: str, fix: str
) -> None:
    path = tmp_path / name
    if "." in name:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    elif name in ("torn", "partial"):
        save_model(path)
        weights = path / "model.safetensors"
        if name == "torn":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            from safetensors.torch import save_file

            state = load_file(weights)
            del state["no_memory_embedding"]
            save_file(state, weights, metadata={"format": "pt"})
    elif name in ("other", "empty"):
        path.mkdir()
        if name == "other":
            (path / "config.json").write_text('{"model_type": "grounding-dino"}')
    with pytest.raises(TkError, match=message) as caught:
        open_model(str(path), 0)
    assert fix in caught.value.fix


def test_config__random_features_are_not_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="random features"):
        settings(tmp_path, freeze_encoder=True)


KEY_BIASES = ("qkv.bias", "k_proj.bias", "key.bias", "in_proj_bias")
"""A softmax does not feel them: their gradient is rounding, which Adam makes as large as any."""


def test_train__two_processes_equal_one(tmp_path: Path) -> None:
    """No parameter waits for a gradient that never comes, and the gradient is the same."""
    write_scenes(tmp_path / "d")
    save_model(tmp_path / "start")
    same: dict[str, Any] = dict(
        model=str(tmp_path / "start"), steps=3, lr=1e-3, colour=0.1, jitter=0.0
    )
    one = settings(tmp_path, out=tmp_path / "one", **same)
    two = settings(tmp_path, out=tmp_path / "two", gpus=2, **same)
    train_sam2(one)
    train_sam2(two)
    states = [load_checkpoint(run.out / "checkpoint_last.pth", "sam2") for run in (one, two)]
    assert [len(state["rng"]) for state in states] == [1, 2]
    before = open_model(str(tmp_path / "start"), 0)[0].state_dict()
    moved = 0
    for name, value in states[0]["model"].items():
        if name.endswith(KEY_BIASES):
            continue
        assert torch.allclose(value, states[1]["model"][name], rtol=1e-3, atol=2e-5), name
        moved += not torch.equal(value, before[name])
    assert moved > 100
    records = [[r for r in RunFolder(run.out).read_metrics() if "loss" in r] for run in (one, two)]
    assert len(records[0]) == 3
    for own, other in zip(*records, strict=True):
        for key in ("loss", "dice", "iou", "grad_norm"):
            assert own[key] == pytest.approx(other[key], rel=1e-3), key
    assert (two.out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("model", ["run", "run/model"])
def test_train__refuses_to_start_from_what_it_would_replace(model: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    save_model(tmp_path / "run" / "model")
    config = settings(tmp_path, model=str(tmp_path / model))
    with pytest.raises(TkError, match="holds the input --model"):
        train_sam2(config)
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_train__a_folder_of_somebody_else_stays(tmp_path: Path) -> None:
    write_scenes(tmp_path / "d")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "notes.txt").touch()
    with pytest.raises(TkError, match="not replaced"):
        train_sam2(settings(tmp_path))
    assert (tmp_path / "run" / "model" / "notes.txt").is_file()
