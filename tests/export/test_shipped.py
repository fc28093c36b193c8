"""Weights that come with tk: found by their ids, exported, and tools found by their words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tk.export.sources.registry import find_source, open_source
from tk.export.write import write_bundle
from tk.runtime.boxes import iou_matrix
from tk.runtime.bundle import Bundle
from tk.runtime.heads.detector import DetectorOptions
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.heads.text_detector import TextDetector, TextOptions
from tk.runtime.images import read_image
from tk.runtime.metrics.masks import mask_iou
from tk.train.data.synth.dataset import write_tools_dataset
from tk.train.pretrained.hub import SHIPPED, fetch, is_hub_id, shipped
from tk.train.scenes.coco import Scenes, mask_of, read_scenes

DETECTOR, SEGMENTER = "tk/grounding-dino-tools", "tk/sam2-tools"


@pytest.mark.parametrize(("name", "task"), [(DETECTOR, "grounding-dino"), (SEGMENTER, "sam2")])
def test_shipped__small_licensed_and_with_its_recipe(name: str, task: str) -> None:
    source = find_source(name)
    assert (source.task, source.name, source.licence) == (task, name, "mit")
    assert sum(file.stat().st_size for file in source.path.iterdir()) < 2.6e6
    recipe = (source.path / "README.md").read_text("utf-8")
    for words in ("tk data synth", "tk train", "--seed", "held-out"):
        assert words in recipe


def test_shipped__an_id_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tk").mkdir()  # a folder of that name must not hide what is shipped
    assert is_hub_id(SEGMENTER) and fetch(SEGMENTER) == SHIPPED / "sam2-tools"
    for other in ("tk/sam2", "tk/..", "sam2-tools", "tk/", "other/sam2-tools"):
        assert shipped(other) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    """Scenes of a seed that neither a training nor the figures in the documents used."""
    folder = tmp_path_factory.mktemp("shipped") / "scenes"
    write_tools_dataset(folder, images=8, size=384, seed=11, workers=1)
    return read_scenes(folder)


@pytest.mark.slow
def test_shipped__the_detector_finds_tools_by_their_words(data: Scenes, tmp_path: Path) -> None:
    model = open_source(DETECTOR, 2)
    assert (model.image.height, model.image.width) == (256, 256)  # as it was trained
    lines = write_bundle(model, tmp_path / "b", data.scenes[0].path.parent)
    assert not any(line.startswith("FAIL") for line in lines)
    words = sorted({name.split()[-1] for name in data.classes})
    detector = TextDetector(
        Bundle.open(tmp_path / "b", "detector"), DetectorOptions(), TextOptions(" . ".join(words))
    )
    found, named, total = 0, 0, 0
    for scene in data.scenes:
        (own,) = detector.detect([read_image(scene.path)])
        for thing in scene.things:
            total += 1
            overlaps = iou_matrix(thing.box[None], own.boxes)[0]
            if len(overlaps) and overlaps.max() >= 0.5:
                found += 1
                named += own.words[int(overlaps.argmax())] == data.classes[thing.label].split()[-1]
    # On the held-out scenes of its training: 0.85 found, 0.79 of them named.
    assert found >= 0.5 * total and named >= 0.6 * found, (found, named, total)


@pytest.mark.slow
def test_shipped__the_segmenter_cuts_tools_out(data: Scenes, tmp_path: Path) -> None:
    model = open_source(SEGMENTER, 2)
    lines = write_bundle(model, tmp_path / "b", data.scenes[0].path.parent)
    assert not any(line.startswith("FAIL") for line in lines)
    segmenter = Segmenter(Bundle.open(tmp_path / "b", "segmenter"), threads=1)
    overlaps = []
    for scene in data.scenes:
        image = read_image(scene.path)
        boxes = np.stack([thing.box for thing in scene.things])
        (found,) = segmenter.segment([image], [boxes])
        for own, thing in zip(found.masks, scene.things, strict=True):
            true = mask_of(thing, scene.height, scene.width)
            assert true is not None
            overlaps.append(mask_iou(own.full(), true))
    assert np.mean(overlaps) >= 0.6, np.mean(overlaps)  # 0.70 on 48 other scenes
