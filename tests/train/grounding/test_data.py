"""Samples, batches, and pixels that equal those of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.export.grounding.models import small_config
from tests.train.grounding.scenes import settings, write_shapes

from tk.export.grounding.parts import ModelPart
from tk.export.grounding.parts import corners as export_corners
from tk.runtime.preprocess import fit
from tk.train.detector.data import Augmentation
from tk.train.grounding.data import canvas_spec, collate, grounding_sample
from tk.train.grounding.load import MEAN, STD
from tk.train.grounding.network import forward, level_shapes, normalise
from tk.train.grounding.phrases import Phrasebook
from tk.train.grounding.train import GroundingTask
from tk.train.run.loop import prepare
from tk.train.scenes.coco import read_scenes
from tk.train.scenes.store import read_picture

STILL = Augmentation(rotate=0, scale=1, colour=0, mirror=False)


def test_normalise__pixels_of_the_exported_part() -> None:
    rng = np.random.default_rng(0)
    config = small_config("mm-grounding-dino")
    make: Any = transformers.MMGroundingDinoForObjectDetection
    network = make(config).eval()
    part = ModelPart(network, (256, 256), MEAN, STD)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((300, 200), (97, 400))]
    spec = canvas_spec(256)
    fitted = [fit(spec, image) for image in images]
    canvas = torch.from_numpy(np.stack([own for own, _ in fitted]))
    valid = torch.tensor([place.valid_hw for _, place in fitted])
    pixels, mask = normalise(canvas, valid, MEAN, STD)
    with torch.no_grad():
        assert torch.equal(pixels, part._pixels(canvas, valid.int()))
    assert mask.sum((1, 2)).tolist() == valid.prod(1).tolist()
    assert level_shapes(network, 256, 256) == part.levels.shapes


def test_forward__equals_the_library(tmp_path: Path) -> None:
    write_shapes(tmp_path / "d")
    config = settings(tmp_path)
    prepare(config)
    task = GroundingTask(config)
    batch = task.collate([task.sample(i, 0, np.random.default_rng(i)) for i in range(3)])
    network = task.network.eval()
    pixels, mask = normalise(batch["image"], batch["valid_hw"], MEAN, STD)
    with torch.no_grad():
        own = forward(network, pixels, mask, batch["ids"], batch["tokens"])
        given = dict(input_ids=batch["ids"], attention_mask=batch["tokens"].long())
        theirs = network(pixel_values=pixels, pixel_mask=mask, **given)
    count = batch["ids"].shape[1]
    assert own.logits.shape[:2] == (2, 3) and own.place_logits.shape == (3, 80, count)
    torch.testing.assert_close(own.logits[-1], theirs.logits[..., :count])
    torch.testing.assert_close(own.boxes[-1], theirs.pred_boxes)


def test_sample__boxes_lie_on_the_objects_and_padding_is_zero(tmp_path: Path) -> None:
    data = read_scenes(write_shapes(tmp_path / "d"))
    picture = read_picture(data.scenes[1], 160, with_masks=False)
    config = settings(tmp_path)
    book = GroundingTask(config).book
    asked = book.ask([book.names[1], book.names[0]])
    for seed in range(8):
        sample = grounding_sample(
            picture, asked, canvas_spec(128), STILL, np.random.default_rng(seed)
        )
        h, w = sample["valid_hw"]
        assert not sample["image"][h:].any() and not sample["image"][:, w:].any()
        assert max(h, w) == 128 and sample["image"].shape == (128, 128, 3)
        for box, named in zip(sample["boxes"], sample["named"], strict=True):
            centre = (box[:2] * (w, h)).astype(int)
            red, green, blue = sample["image"][centre[1], centre[0]].astype(int)
            word = asked.phrases[:, named][:, 0].argmax()  # 0: red disc, 1: blue box
            assert (red > blue + 50) if word == 0 else (blue > red + 50), (seed, red, green, blue)
    corner = torch.from_numpy(sample["boxes"])[None]
    size = torch.tensor([[h, w]], dtype=torch.int32)
    assert export_corners(corner, size).min() > -1e-3


def test_sample__what_is_not_asked_for_is_background(tmp_path: Path) -> None:
    data = read_scenes(write_shapes(tmp_path / "d"))
    picture = read_picture(data.scenes[0], 160, with_masks=False)
    book: Phrasebook = GroundingTask(settings(tmp_path)).book
    rng = [np.random.default_rng(5) for _ in range(2)]
    spec = canvas_spec(128)
    both = grounding_sample(picture, book.all, spec, STILL, rng[0])
    one = grounding_sample(picture, book.ask(book.names[1:]), spec, STILL, rng[1])
    assert len(both["boxes"]) == 2 and np.array_equal(one["boxes"], both["boxes"][1:])
    assert np.array_equal(one["image"], both["image"])
    batch = collate([both, one])
    assert batch["counts"].tolist() == [2, 1] and batch["named"].shape == (3, batch["ids"].shape[1])
    assert batch["tokens"].sum(1).tolist() == [len(both["ids"]), len(one["ids"])]
    assert not batch["ids"][~batch["tokens"]].any()
    # The same words are named, wherever they stand.
    for row, picture_index in ((1, 0), (2, 1)):
        words = batch["ids"][picture_index][batch["named"][row]]
        assert words.tolist() == batch["ids"][0][batch["named"][1]].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_sample__depends_on_the_generator_alone(tmp_path: Path, workers: int) -> None:
    write_shapes(tmp_path / "d")
    task = GroundingTask(settings(tmp_path, word_share=0.5, subset_share=0.5, any_share=0.3))
    first, again = (task.sample(1, 0, np.random.default_rng(workers)) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
