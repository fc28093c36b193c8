"""What an embedder sees is the same in training, in the gallery and in the annotator's scenes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from tk.export.sources.registry import open_source
from tk.export.write import write_bundle
from tk.runtime.annotate.groups import Candidate, Group, Item
from tk.runtime.annotate.stages import Decode, Embed
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.gallery.build import build_gallery
from tk.runtime.gallery.gallery import Gallery, open_gallery
from tk.runtime.gallery.references import Reference, reference_crop
from tk.runtime.heads.embedder import Embedder
from tk.runtime.images import read_image
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, cut_crop, fit
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.task import EmbedderTask
from tk.train.embedder.train import load_embedder, train_embedder
from tk.train.run.checkpoint import classes_of, crop_spec_of, image_spec_of

HEIGHT, WIDTH = 150, 200
CLASSES = ("болт", "гайка", "ключ")


@dataclass(frozen=True)
class Thing:
    """One object of a scene, and the files of its crop."""

    scene: Path
    mask: NDArray[np.bool_]
    crop: Path
    mask_file: Path


def shape(rng: np.random.Generator, kind: int, number: int) -> NDArray[np.bool_]:
    """(HEIGHT, WIDTH) bool: an ellipse, a ring or a bent bar; every fourth leaves the picture."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    at = (2 if number % 4 == 0 else int(rng.integers(50, 150)), int(rng.integers(45, 105)))
    axes, angle = (int(rng.integers(20, 33)), int(rng.integers(9, 15))), float(rng.integers(180))
    if kind == 2:
        cv2.ellipse(canvas, at, axes, angle, 0, 230, 255, 7)
    else:
        cv2.ellipse(canvas, at, axes, angle, 0, 360, 255, -1 if kind == 0 else 6)
    return canvas > 0


def write_png(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image[..., ::-1] if image.ndim == 3 else image
    path.write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
    return path


def write_things(root: Path, room: float, count: int = 8) -> list[Thing]:
    """Scenes, and a crop of each object with `room` (share of its longer side) all round."""
    rng = np.random.default_rng(3)
    things = []
    for number in range(count):
        for kind, name in enumerate(CLASSES):
            mask = shape(rng, kind, number)
            scene = rng.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            scene[mask] = rng.integers(90, 255, (int(mask.sum()), 3), dtype=np.uint8)
            stem = f"scene_{number * 3 + kind:05d}"
            x0, y0, x1, y1 = tight_box(mask).astype(int)
            pad = int(np.ceil(room * max(x1 - x0, y1 - y0)))
            rows = slice(max(0, y0 - pad), min(HEIGHT, y1 + pad))
            columns = slice(max(0, x0 - pad), min(WIDTH, x1 + pad))
            folder, grey = root / "crops" / name, mask.astype(np.uint8) * 255
            things.append(
                Thing(
                    write_png(root / "scenes" / f"{stem}.png", scene),
                    mask,
                    write_png(folder / "cropped" / f"{stem}_00.png", scene[rows, columns]),
                    write_png(folder / "masks" / f"{stem}_00_mask.png", grey[rows, columns]),
                )
            )
    return things


def box_mask(mask: NDArray[np.bool_]) -> BoxMask:
    """As the segmenter gives it: a region around the object, in its scene."""
    x0, y0, x1, y1 = (int(v) for v in cv2.boundingRect(mask.astype(np.uint8)))
    y, x = max(0, y0 - 3), max(0, x0 - 2)
    return BoxMask(x, y, mask[y : y0 + y1 + 1, x : x0 + x1 + 4], *mask.shape)


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.nonzero(mask)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return np.asarray(edges, np.float32)


@dataclass(frozen=True)
class World:
    """A trained and exported embedder; its data and weights file are gone from where they were.

    Attributes:
        things: now at another place than in training.
        canvases: crop file name -> what `EmbedderTask.canvas` made of it.
        labels: crop file name -> class index in training.
    """

    root: Path
    things: list[Thing]
    canvases: dict[str, Image]
    checkpoint: Path
    bundle: Path


def config_of_run(root: Path, **options: Any) -> EmbedderConfig:
    values: dict[str, Any] = {
        "data": root / "crops", "out": root / "run", "model_id": "test_resnet", "img_size": 64,
        "emb_dim": 16, "crop_mode": "mask", "steps": 2, "batch_size": 4, "min_per_class": 3,
        "aug": "tools", "device": "cpu", "workers": 0, "threads": 1, **options,
    }  # fmt: skip
    return EmbedderConfig(**values)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("pixels")
    place = root / "training"
    write_things(place, room=0.3)
    weights = place / "backbone.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), weights)
    config = config_of_run(place, weights=weights)
    best = train_embedder(config)
    task = EmbedderTask(config)
    canvases = {c.path.name: task.canvas(c) for crops in task.splits.values() for c in crops}

    alone = root / "elsewhere"
    alone.mkdir()
    checkpoint = Path(shutil.copy(best, alone / "embedder.pth"))
    for name in ("prototypes.npz", "gallery.json"):
        shutil.copy(config.out / name, alone / name)
    shutil.rmtree(place)
    things = write_things(root / "later", room=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(alone)
        model = open_source(Path("embedder.pth"), max_batch=4)
        write_bundle(model, alone / "bundle", root / "later" / "scenes")
    yield World(root, things, canvases, checkpoint, alone / "bundle")


class Watched:
    """A session that keeps what it was given."""

    def __init__(self, embedder: Embedder) -> None:
        self.session, self.seen = embedder.session, list[NDArray[Any]]()

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.seen.extend(inputs["image"])
        return self.session.run(inputs)


def annotate(world: World, embedder: Embedder) -> NDArray[np.float32]:
    """The annotator's own stages on the scenes: (N, D) float32, in the order of the things."""
    items = [Item(thing.scene, thing.scene.name) for thing in world.things]
    group = Group(items)
    with ThreadPoolExecutor(1) as threads:
        Decode(threads, 10**6)(group)
    for item, thing in zip(items, world.things, strict=True):
        mask = box_mask(thing.mask)
        box = mask.tight_box()
        assert box is not None
        item.candidates.append(Candidate(box, mask, 1.0, "object"))
    Embed(embedder)(group)
    rows = [item.embeddings for item in items if item.embeddings is not None]
    return np.concatenate(rows)


def test_pixels__the_annotator_sees_what_training_saw(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(Bundle.open(world.bundle), device="cpu", threads=1)
    watched = Watched(embedder)
    monkeypatch.setattr(embedder, "session", watched)
    found = annotate(world, embedder)

    trained = np.stack([world.canvases[thing.crop.name] for thing in world.things])
    assert len(watched.seen) == len(trained) == len(CLASSES) * 8
    for seen, canvas in zip(watched.seen, trained, strict=True):
        np.testing.assert_array_equal(seen, canvas)
    grey = np.asarray(embedder.crop.fill, np.uint8)
    masked = (trained == grey).all(axis=-1).mean()
    assert 0.3 < masked < 0.95  # neither nothing nor everything is painted over

    network, _ = load_embedder(world.checkpoint)
    with torch.inference_mode():
        expected = network(torch.from_numpy(trained)).numpy()
    assert (found * expected).sum(axis=1).min() > 0.99999
    assert (found @ found.T).min() < 0.999  # they are not all alike, so the line above says much


def test_pixels__the_gallery_sees_what_training_saw(world: World) -> None:
    embedder = Embedder(Bundle.open(world.bundle), device="cpu", threads=1)
    for thing in world.things:
        reference = Reference("any", thing.crop, thing.mask_file)
        canvas = fit(embedder.manifest.image, reference_crop(reference, embedder.crop))[0]
        np.testing.assert_array_equal(canvas, world.canvases[thing.crop.name])


@pytest.mark.parametrize(
    ("background", "room", "same"),
    [
        *(("keep", room, same) for room, same in ((0.25, True), (0.11, True), (0.0, False))),
        *(("mask", room, True) for room in (0.25, 0.11, 0.0)),
    ],
)
def test_pixels__room_around_the_object_in_a_crop_file(
    background: Any, room: float, same: bool, tmp_path: Path
) -> None:
    """A kept background needs the margin of the spec in the file, a masked one is filled up."""
    mode = "mask" if background == "mask" else "bbox"
    things = write_things(tmp_path, room, count=4)
    task = EmbedderTask(config_of_run(tmp_path, crop_mode=mode, pretrained=False, min_per_class=1))
    crops = {crop.path: crop for part in task.splits.values() for crop in part}
    spec = CropSpec(background=background)
    assert task.crop_spec == spec
    equal = []
    for thing in things:
        scene = read_image(thing.scene)
        cut = cut_crop(scene, tight_box(thing.mask), spec, box_mask(thing.mask))
        canvas = fit(task.image_spec, cut)[0]
        equal.append(bool((task.canvas(crops[thing.crop]) == canvas).all()))
    assert all(equal) if same else not any(equal)


def test_spec__is_the_same_from_checkpoint_to_gallery(world: World, tmp_path: Path) -> None:
    _, state = load_embedder(world.checkpoint)
    bundle = Bundle.open(world.bundle)
    embedder = Embedder(bundle, device="cpu", threads=1)
    gallery, report = build_gallery(world.root / "later" / "crops", embedder)
    assert report.references == len(world.things) and not report.skipped
    gallery.save(tmp_path / "gallery")
    again = open_gallery(tmp_path / "gallery")
    wanted = CropSpec(background="mask")
    assert crop_spec_of(state) == bundle.manifest.crop == gallery.crop == again.crop == wanted
    assert image_spec_of(state) == bundle.manifest.image
    assert gallery.classes == classes_of(state) == CLASSES
    again.check_embedder(embedder)


@pytest.mark.parametrize(
    "other",
    [
        CropSpec(background="keep"),
        CropSpec(margin=0.2, background="mask"),
        CropSpec(background="mask", fill=(0, 0, 0)),
    ],
)
def test_spec__a_gallery_with_another_is_refused(
    other: CropSpec, world: World, tmp_path: Path
) -> None:
    embedder = Embedder(Bundle.open(world.bundle), device="cpu", threads=1)
    unit = np.eye(3, embedder.dimension, dtype=np.float32)
    gallery = Gallery(CLASSES, unit, unit, np.arange(3), embedder.sha256, embedder.crop)
    gallery.check_embedder(embedder)
    dataclasses.replace(gallery, crop=other).save(tmp_path / "gallery")
    with pytest.raises(TkError, match="cut their crops differently"):
        open_gallery(tmp_path / "gallery").check_embedder(embedder)


def test_export__says_where_the_weights_came_from(world: World) -> None:
    licence = Bundle.open(world.bundle).manifest.licence
    assert "backbone.pth" in licence and "not known" in licence
    assert str(world.root) not in (world.bundle / "manifest.json").read_text()


def test_run_folder__is_a_gallery_of_its_own_bundle(world: World) -> None:
    """Training leaves prototypes, thresholds and CropSpec where `tk annotate --gallery` looks."""
    embedder = Embedder(Bundle.open(world.bundle), device="cpu", threads=1)
    gallery = open_gallery(world.checkpoint.parent)
    gallery.check_embedder(embedder)
    assert gallery.classes == CLASSES and gallery.crop == embedder.crop
    assert set(gallery.thresholds) == {"centroid", "stack"}
    measured = gallery.facts["calibration"]["measured"]["centroid"]
    assert measured["of"] > 0 and 0 <= measured["false_rejections"] <= 1
    with pytest.raises(TkError, match="another embedder"):
        dataclasses.replace(gallery, checkpoint_sha256="0" * 64).check_embedder(embedder)
