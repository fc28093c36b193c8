"""Masks to boxes: against boxes found pixel by pixel, and COCO's own reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from scipy import ndimage

from tk.runtime.errors import TkError
from tk.train.data.steel.boxes import Limits, find_regions
from tk.train.data.steel.prepare import prepare_severstal
from tk.train.data.steel.prepared import read_prepared
from tk.train.data.steel.runs import encode_column_runs
from tk.train.data.steel.table import write_table
from tk.train.scenes.coco import mask_of, read_scenes

HEIGHT, WIDTH = 64, 200


def blank() -> NDArray[np.bool_]:
    return np.zeros((HEIGHT, WIDTH), bool)


def two_parts() -> NDArray[np.bool_]:
    mask = blank()
    mask[5:25, 10:40] = True
    mask[10:15, 15:20] = False  # a hole
    mask[30:60, 100:112] = True
    mask[40, 150] = True  # too small
    return mask


def write_image(path: Path, value: int = 90) -> None:
    grey = np.full((HEIGHT, WIDTH), value, np.uint8)
    cv2.imwrite(str(path), cv2.merge([grey] * 3))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "train_images").mkdir(parents=True)
    for name in ("0002cc93b", "0007a71bf", "good"):
        write_image(folder / "train_images" / f"{name}.jpg")
    corner = blank()
    corner[:12, WIDTH - 9 :] = True
    rows = [
        ("0002cc93b.jpg", 1, encode_column_runs(two_parts())),
        ("0007a71bf.jpg", 3, encode_column_runs(corner)),
        ("0007a71bf.jpg", 4, encode_column_runs(two_parts())),
    ]
    write_table(folder / "train.csv", rows)
    return folder


def test_prepare__boxes_counts_pictures(data: Path, tmp_path: Path) -> None:
    summary = prepare_severstal(data, tmp_path / "out")
    assert (summary.images, summary.without, summary.small) == (3, 1, 2)
    assert summary.counts == {
        1: {"boxes": 2, "images": 1},
        2: {"boxes": 0, "images": 0},
        3: {"boxes": 1, "images": 1},
        4: {"boxes": 2, "images": 1},
    }
    images = {image.name: image for image in read_prepared(tmp_path / "out")}
    first = images["0002cc93b.jpg"]
    assert [(d.class_id, d.box, d.area) for d in first.defects] == [
        (1, (10, 5, 40, 25), 20 * 30 - 25),
        (1, (100, 30, 112, 60), 12 * 30),
    ]
    assert (first.width, first.height, first.small) == (WIDTH, HEIGHT, 1)
    second = images["0007a71bf.jpg"].defects
    assert (second[0].class_id, second[0].box) == (3, (WIDTH - 9, 0, WIDTH, 12))
    assert images["good.jpg"].defects == ()
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["0002cc93b_annotated.jpg", "0007a71bf_annotated.jpg"]
    picture = cv2.imread(str(tmp_path / "out" / "pictures" / drawn[0]))
    assert picture is not None and picture.shape == (HEIGHT, WIDTH, 3)
    coloured = np.ptp(picture.astype(int), axis=2) > 60
    assert coloured[5:25, 10:40].mean() > 0.3 and not coloured[:, 160:].any()


def test_prepare__coco_readers_agree_with_the_masks(data: Path, tmp_path: Path) -> None:
    prepare_severstal(data, tmp_path / "out", min_contour_area=0, min_box=1)
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == [
        "pits", "crack", "scratch", "scale",
    ]  # fmt: skip
    (entry,) = [i for i in coco.loadImgs(coco.getImgIds()) if i["file_name"] == "0002cc93b.jpg"]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=entry["id"]))
    union = np.any([coco.annToMask(a).astype(bool) for a in annotations], axis=0)
    np.testing.assert_array_equal(union, two_parts())
    assert sum(a["area"] for a in annotations) == two_parts().sum()
    scenes = read_scenes(tmp_path / "out")
    assert all(scene.path.is_file() for scene in scenes.scenes)
    assert scenes.classes == ("pits", "crack", "scratch", "scale")
    for scene in scenes.scenes:
        for thing in scene.things:
            mask = mask_of(thing, scene.height, scene.width)
            assert mask is not None
            rows, columns = np.nonzero(mask)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tuple(thing.box) == tight


def test_regions__as_scipy_labels_them() -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(3).random((80, 160)), 3)
    mask = noise > np.quantile(noise, 0.7)
    mask = ndimage.binary_fill_holes(mask)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    regions, dropped = find_regions(mask, Limits(0, 1))
    assert dropped == 0 and len(regions) == count > 10
    found = {region.box: region.pixels for region in regions}
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        pixels = found[(columns.start, rows.start, columns.stop, rows.stop)]
        np.testing.assert_array_equal(pixels, labels[rows, columns] == number)
    kept, dropped = find_regions(mask, Limits(32, 8))
    assert len(kept) + dropped == count and kept and dropped
    for region in kept:
        assert min(region.pixels.shape) >= 8


def test_prepare__draws_every_class_in_turn(data: Path, tmp_path: Path) -> None:
    write_image(data / "train_images" / "zz.jpg")
    with open(data / "train.csv", "a") as file:
        file.write(f"zz.jpg,4,{encode_column_runs(two_parts())}\n")
    prepare_severstal(data, tmp_path / "out", pictures=4)
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    # 0007a71bf has class 3 and 4: it stands for one of them only.
    assert drawn == ["0002cc93b_annotated.jpg", "0007a71bf_annotated.jpg", "zz_annotated.jpg"]
    prepare_severstal(data, tmp_path / "none", pictures=0)
    assert not (tmp_path / "none" / "pictures").exists()


def test_regions__limits_on_area_and_on_sides() -> None:
    line = blank().astype(np.uint8)
    cv2.line(line, (10, 10), (40, 40), 1, 1)  # 31x31 pixels, without an area
    line[5:55, 60:67] = 1  # 7 wide
    line[5:55, 80:88] = 1  # 8 wide
    regions, dropped = find_regions(line > 0, Limits(32, 8))
    assert [region.box for region in regions] == [(80, 5, 88, 55)]
    assert dropped == 2
    assert len(find_regions(line > 0, Limits(0, 8))[0]) == 2
    assert len(find_regions(line > 0, Limits(32, 7))[0]) == 2
    # Through the pixels' centres: 7 x 49.
    assert len(find_regions(line > 0, Limits(7 * 49, 8))[0]) == 1
    assert not find_regions(line > 0, Limits(7 * 49 + 1, 8))[0]


@pytest.mark.parametrize(("area", "side"), [(-1, 8), (float("nan"), 8), (32, 0)])
def test_limits__out_of_range(area: float, side: int) -> None:
    with pytest.raises(TkError, match="--min-contour-area"):
        Limits(area, side)


def test_prepare__does_not_depend_on_workers(data: Path, tmp_path: Path) -> None:
    prepare_severstal(data, tmp_path / "one")
    prepare_severstal(data, tmp_path / "two", workers=2)
    for name in ("defects.json", "annotations.json", "pictures/0002cc93b_annotated.jpg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_prepare__old_layout_says_the_same(data: Path, tmp_path: Path) -> None:
    prepare_severstal(data, tmp_path / "new")
    lines = (data / "train.csv").read_text().splitlines()[1:]
    known = {(name, kind): runs for name, kind, runs in (line.split(",") for line in lines)}
    old = ["ImageId_ClassId,EncodedPixels"]
    for name in ("0002cc93b.jpg", "0007a71bf.jpg", "good.jpg"):
        old += [f"{name}_{kind},{known.get((name, str(kind)), '')}" for kind in range(1, 5)]
    (data / "train.csv").write_text("\n".join(old) + "\n")
    summary = prepare_severstal(data, tmp_path / "old")
    assert summary.empty == 9
    assert read_prepared(tmp_path / "old") == read_prepared(tmp_path / "new")


def test_prepare__missing_images(data: Path, tmp_path: Path) -> None:
    (data / "train_images" / "0007a71bf.jpg").unlink()
    with pytest.raises(TkError) as caught:
        prepare_severstal(data, tmp_path / "out")
    assert "0007a71bf.jpg" in caught.value.found
    assert "--skip-missing" in caught.value.fix
    assert not (tmp_path / "out").exists()
    summary = prepare_severstal(data, tmp_path / "out", skip_missing=True)
    assert summary.missing == ["0007a71bf.jpg"]
    assert summary.images == 2
    index = json.loads((tmp_path / "out" / "defects.json").read_text())
    assert index["missing"] == ["0007a71bf.jpg"]


def test_prepare__unreadable_images(data: Path, tmp_path: Path) -> None:
    whole = (data / "train_images" / "good.jpg").read_bytes()
    (data / "train_images" / "good.jpg").write_bytes(whole[: len(whole) // 2])
    summary = prepare_severstal(data, tmp_path / "out")
    assert list(summary.unreadable) == ["good.jpg"]
    assert summary.images == 2 and summary.without == 0
    for path in (data / "train_images").iterdir():
        path.write_bytes(b"not a picture")
    with pytest.raises(TkError, match="no image"):
        prepare_severstal(data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_prepare__runs_that_leave_their_image_are_named(data: Path, tmp_path: Path) -> None:
    with open(data / "train.csv", "a") as file:
        file.write(f"good.jpg,2,{HEIGHT * WIDTH} 2\n")
    with pytest.raises(TkError) as caught:
        prepare_severstal(data, tmp_path / "out", workers=2)
    assert "line 5, image good.jpg, class 2" in caught.value.what
    assert caught.value.found == f"{HEIGHT * WIDTH} 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_prepare__a_wide_picture_of_its_own_size(data: Path, tmp_path: Path) -> None:
    """The mask is read with the size of its own image, not with 1600x256."""
    mask = np.zeros((30, 50), bool)
    mask[5:25, 20:45] = True
    cv2.imwrite(str(data / "train_images" / "small.png"), np.full((30, 50, 3), 80, np.uint8))
    with open(data / "train.csv", "a") as file:
        file.write(f"small.png,2,{encode_column_runs(mask)}\n")
    prepare_severstal(data, tmp_path / "out")
    (image,) = [i for i in read_prepared(tmp_path / "out") if i.name == "small.png"]
    assert image.defects[0].box == (20, 5, 45, 25)


def test_prepare__refuses_to_replace_its_input(data: Path, tmp_path: Path) -> None:
    for out in (data, tmp_path):
        with pytest.raises(TkError, match="holds the input"):
            prepare_severstal(data, out, overwrite=True)
    assert (data / "train.csv").is_file()
    with pytest.raises(TkError, match="holds the input"):
        prepare_severstal(data, data)
    shutil.rmtree(data / "train_images")
    with pytest.raises(TkError, match="tk data download"):
        prepare_severstal(data, tmp_path / "out")


INDEX = '{"images": [{"image": "%s", "width": 9, "height": 9, "small": 0, "defects": [%s]}]}'
DEFECT = '{"class_id": %s, "box_xyxy": [%s], "area": 1}'
FAULTS = (
    "{}",
    "[]",
    INDEX % ("../a.jpg", ""),
    INDEX % ("a.jpg", DEFECT % (1, "0, 0, 10, 5")),
    INDEX % ("a.jpg", DEFECT % (1, "5, 0, 5, 5")),
    INDEX % ("a.jpg", DEFECT % (5, "0, 0, 5, 5")),
    INDEX % ("a.jpg", DEFECT % (1, "0, 0, 5")),
)


@pytest.mark.parametrize("text", FAULTS)
def test_read_prepared__refuses_other_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "defects.json").write_text(text)
    with pytest.raises(TkError, match="not an index of defects"):
        read_prepared(tmp_path)


def test_read_prepared__refuses_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="tk data severstal"):
        read_prepared(tmp_path)
