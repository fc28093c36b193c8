from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask, coco_rle
from tk.train.scenes.coco import Thing, mask_of, outline, read_scenes, split
from tk.train.scenes.store import Store
from tk.train.scenes.warp import compose, recolour, view, warp, warped_boxes


def ellipse(height: int = 60, width: int = 80) -> np.ndarray[Any, Any]:
    canvas = np.zeros((height, width), np.uint8)
    cv2.ellipse(canvas, (40, 30), (25, 9), 30, 0, 360, 1, -1)
    return canvas.astype(bool)


def write_folder(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    mask = ellipse()
    x0, y0, x1, y1 = (float(v) for v in outline_box(mask))
    rle = coco_rle(BoxMask(0, 0, mask, *mask.shape))
    polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0]]
    images, annotations = [], []
    for index in range(3):
        name = f"{index}.png"
        images.append({"id": index, "file_name": name, "width": 80, "height": 60})
        pixels = np.full((60, 80, 3), 40 * index, np.uint8)
        PilImage.fromarray(pixels).save(folder / "images" / name)
        box = [x0, y0, x1 - x0, y1 - y0]
        annotations.append(dict(image_id=index, category_id=7, bbox=box, segmentation=rle))
        annotations.append(
            dict(image_id=index, category_id=3, bbox=[10, 10, 20, 10], segmentation=polygon)
        )
        annotations.append(dict(image_id=index, category_id=3, bbox=[1, 1, 5, 5], iscrowd=1))
    (folder / "images" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    categories = [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def outline_box(mask: np.ndarray[Any, Any]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_read_scenes__rle_polygon_and_classes(tmp_path: Path) -> None:
    data = read_scenes(write_folder(tmp_path / "d"))
    assert data.classes == ("a", "b") and len(data.scenes) == 3
    first, second = data.scenes[0].things
    assert (first.label, second.label) == (1, 0)
    run_lengths = mask_of(first, 60, 80)
    assert run_lengths is not None and np.array_equal(run_lengths, ellipse())
    polygon = mask_of(second, 60, 80)
    assert polygon is not None and polygon.sum() == 200 and polygon[10:20, 10:30].all()
    single = read_scenes(tmp_path / "d" / "annotations.json", "tool")
    assert single.classes == ("tool",) and {t.label for t in single.scenes[0].things} == {0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a COCO"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ('{"images": [{"id": 1, "file_name": "../x", "width": 1, "height": 1}], '
         '"annotations": [], "categories": []}', "leaves the folder"),
    ],
)  # fmt: skip
def test_read_scenes__bad_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(TkError, match=message):
        read_scenes(tmp_path)


def test_mask_of__bad_polygon() -> None:
    box = np.array([0, 0, 4, 4], np.float32)
    assert mask_of(Thing(0, box, [[1, 2, 3]]), 8, 8) is None
    with pytest.raises(TkError, match="polygon"):
        mask_of(Thing(0, box, [1, 2, 3, 4, 5, 6]), 8, 8)


@pytest.mark.parametrize("ram", [1 << 30, 0])
def test_store__broken_images_are_skipped(tmp_path: Path, ram: int) -> None:
    scenes = read_scenes(write_folder(tmp_path / "d")).scenes
    store = Store(scenes, 40, ram=ram, with_masks=True)
    assert (store.skipped, len(store)) == ((1, 2) if ram else (0, 3))
    first, after_broken = store[0], store[1]
    assert first.image.shape == (30, 40, 3)
    assert after_broken.image.mean() == 80
    mask = first.masks[0]
    assert mask is not None
    x0, y0, x1, y1 = (v / 2 for v in outline_box(ellipse()))
    assert (mask.x, mask.y) == (int(x0), int(y0))
    assert mask.pixels.sum() / 255 == pytest.approx(ellipse().sum() / 4, rel=0.02)
    assert first.outlines[0].min(axis=0) == pytest.approx([x0, y0])
    assert first.outlines[0].max(axis=0) == pytest.approx([x1, y1])


@pytest.mark.parametrize(("degrees", "mirror"), [(0, False), (90, False), (37, True), (200, True)])
def test_warped_boxes__bound_the_warped_mask(degrees: float, mirror: bool) -> None:
    mask = ellipse()
    affine = view((40, 30), (70, 60), 1.5, degrees, mirror)
    points = outline(mask, np.zeros(4, np.float32))
    (box,), (visible,) = warped_boxes([points], affine, 120, 140)
    image = warp(mask.astype(np.uint8) * 255, affine, 120, 140, 0)
    assert visible == pytest.approx(1.0)
    assert box == pytest.approx(outline_box(image > 64), abs=1.0)


def test_warp__right_angle_is_exact() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    turned = warp(picture, view((2, 1.5), (1.5, 2), 1.0, 90, False), 4, 3, 0)
    assert np.array_equal(turned, np.rot90(picture, -1))
    mirrored = warp(picture, view((2, 1.5), (2, 1.5), 1.0, 0, True), 3, 4, 0)
    assert np.array_equal(mirrored, picture[:, ::-1])


def test_warped_boxes__share_in_window() -> None:
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float32)
    affine = compose(view((0, 0), (-5, 0), 1.0, 0, False), view((0, 0), (0, 0), 2.0, 0, False))
    boxes, visible = warped_boxes([square], affine, 100, 100)
    assert boxes[0] == pytest.approx([0, 0, 15, 20]) and visible[0] == pytest.approx(0.75)


def test_recolour__repeats_and_stays_near() -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    results = [recolour(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])
    calm = np.random.default_rng(3)
    assert np.abs(recolour(image, calm, 1e-6).astype(int) - image).mean() < 20


@pytest.mark.parametrize(
    ("count", "share", "held"), [(10, 0.1, 1), (5, 0.01, 1), (5, 0.0, 0), (1, 0.5, 0)]
)
def test_split__whole_and_seeded(count: int, share: float, held: int) -> None:
    train, test = split(count, share, 3)
    assert len(test) == held and sorted([*train, *test]) == list(range(count))
    assert np.array_equal(split(count, share, 3)[1], test)
