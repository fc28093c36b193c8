"""Samples: what the network sees is what the runtime shows it, and boxes and masks agree."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.train.sam2.scenes import change_annotations, settings, write_scenes

from tk.runtime.images import read_image
from tk.runtime.preprocess import ImageSpec, fit
from tk.train.sam2.data import CanvasStore, make_sample, read_canvas
from tk.train.sam2.model import Normalisation
from tk.train.scenes.coco import mask_of, read_scenes

SPEC = ImageSpec(128, 128, mode="stretch", interpolation="area")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_sample__pixels_and_boxes_are_the_runtimes(tmp_path: Path) -> None:
    scene = read_scenes(write_scenes(tmp_path / "d")).scenes[0]
    picture = read_canvas(scene, SPEC)
    image = read_image(scene.path)
    canvas, placement = fit(SPEC, image)
    boxes = placement.to_canvas(np.stack([thing.box for thing in scene.things]))
    still = settings(tmp_path, jitter=0, warped=0, colour=0)
    seen = set()
    for seed in range(12):
        sample = make_sample(picture, still, 32, rng(seed))
        mirrored = not np.array_equal(sample.canvas, canvas)
        seen.add(mirrored)
        expected, cells = boxes, sample.masks
        if mirrored:
            np.testing.assert_array_equal(sample.canvas, canvas[:, ::-1])
            expected, cells = boxes[:, [2, 1, 0, 3]], sample.masks[:, :, ::-1]
            expected = np.where([True, False, True, False], 128 - expected, expected)
        for box, own in zip(sample.boxes, cells, strict=True):
            index = int(np.abs(expected - box).sum(axis=1).argmin())
            np.testing.assert_allclose(box, expected[index], atol=1e-4)
            mask = mask_of(scene.things[index], *image.shape[:2])
            assert mask is not None
            share = cv2.resize(mask.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
            assert np.abs(own / 255 - share).max() < 0.02
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(8))
def test_sample__turned_boxes_and_masks_agree_with_the_pixels(tmp_path: Path, seed: int) -> None:
    scene = read_scenes(write_scenes(tmp_path / "d")).scenes[seed % 4]
    picture = read_canvas(scene, SPEC)
    turned = settings(tmp_path, jitter=0, warped=1, turn=180, zoom=1.2, colour=0, objects=3)
    sample = make_sample(picture, turned, 128, rng(seed))
    assert sample.masks.shape == (3, 128, 128) and sample.boxes.dtype == np.float32
    bright = sample.canvas[..., 0] > 150
    for box, mask in zip(sample.boxes, sample.masks, strict=True):
        rows, columns = np.nonzero(mask > 127)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(tight - box).max() < 2.5
        assert bright[mask > 127].mean() > 0.97
        near = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0
        edge = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
        assert bright[near & ~edge].mean() < 0.1  # nothing of the object was left out


def test_sample__jitter_moves_edges_by_its_share_and_stays_on_the_canvas(tmp_path: Path) -> None:
    picture = read_canvas(read_scenes(write_scenes(tmp_path / "d")).scenes[0], SPEC)
    exact = settings(tmp_path, jitter=0, warped=0, colour=0, objects=1)
    loose = settings(tmp_path, jitter=0.2, warped=0, colour=0, objects=1)
    largest = 0.0
    for seed in range(30):
        box = make_sample(picture, exact, 32, rng(seed)).boxes[0]
        moved = make_sample(picture, loose, 32, rng(seed)).boxes[0]
        sides = np.tile(box[2:] - box[:2], 2)
        largest = max(largest, float((np.abs(moved - box) / sides).max()))
        assert moved.min() >= 0 and moved.max() <= 128
    assert 0.1 < largest <= 0.2


def test_sample__depends_on_the_rng_alone(tmp_path: Path) -> None:
    picture = read_canvas(read_scenes(write_scenes(tmp_path / "d")).scenes[1], SPEC)
    config = settings(tmp_path)
    one, two, other = (make_sample(picture, config, 32, rng(seed)) for seed in (5, 5, 6))
    for name in ("canvas", "boxes", "masks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.canvas, other.canvas)


def test_sample__more_objects_than_there_are_come_again_with_another_error(tmp_path: Path) -> None:
    picture = read_canvas(read_scenes(write_scenes(tmp_path / "d")).scenes[0], SPEC)
    sample = make_sample(picture, settings(tmp_path, objects=5, warped=0), 32, rng(0))
    assert sample.boxes.shape == (5, 4)
    assert len(np.unique(sample.boxes, axis=0)) == 5
    assert len(np.unique(sample.masks.reshape(5, -1), axis=0)) == 2


def test_store__objects_without_a_mask_are_not_asked_for(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "d")

    def strip(item: dict[str, object]) -> None:
        if item["image_id"] == 0 or item["category_id"] == 1:
            item["segmentation"] = None

    change_annotations(folder, strip)
    scenes = read_scenes(folder).scenes
    for ram in (1 << 30, 0):
        store = CanvasStore(scenes, SPEC, ram)
        assert store.skipped == (1 if ram else 0)
        assert all(len(store[index].masks) == 1 for index in range(len(store)))


def test_normalisation__equals_the_librarys_processor() -> None:
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor

    canvas = rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    given = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    processor = Sam2ImageProcessor(
        size={"height": 64, "width": 64}, image_mean=list(given.mean), image_std=list(given.std)
    )
    expected = processor(images=canvas, return_tensors="pt")["pixel_values"]
    found = given.pixels(torch.from_numpy(canvas)[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
