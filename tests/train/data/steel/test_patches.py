"""Patches: the right pixels under the right names, and no image in two splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.images import find_images, read_image
from tk.train.data.steel.background import first_lit, plan_background
from tk.train.data.steel.patches import PatchSummary, cut_patches
from tk.train.data.steel.prepare import prepare_severstal
from tk.train.data.steel.prepared import Defect, DefectImage
from tk.train.data.steel.runs import encode_column_runs
from tk.train.data.steel.table import write_table
from tk.train.embedder.data import find_crops
from tk.train.embedder.split import split_crops

HEIGHT, WIDTH = 64, 220
NAMES = ("0002cc93b", "0007a71bf", "000a4bcdd", "000f6bf48", "001982b08", "001d1b355")
"""As Severstal's: hexadecimal, some with three digits at the end and some without."""


def noise(seed: int) -> NDArray[np.uint8]:
    grey = np.random.default_rng(seed).integers(40, 200, (HEIGHT, WIDTH), dtype=np.uint8)
    return np.asarray(cv2.merge([grey] * 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six strips with defects of classes 1 and 3, one of them with seven; four good strips."""
    root = tmp_path_factory.mktemp("steel")
    folder = root / "data" / "train_images"
    folder.mkdir(parents=True)
    rows = []
    for number, name in enumerate(NAMES):
        cv2.imwrite(str(folder / f"{name}.jpg"), noise(number))
        pits = np.zeros((HEIGHT, WIDTH), bool)
        for x in range(7 if number == 0 else 1):
            pits[2:12, 5 + 30 * x : 17 + 30 * x] = True
        scratch = np.zeros((HEIGHT, WIDTH), bool)
        scratch[20 + number : 60, 20 * number : 20 * number + 30] = True
        rows += [(f"{name}.jpg", 1, encode_column_runs(pits))]
        rows += [(f"{name}.jpg", 3, encode_column_runs(scratch))]
    for number in range(4):
        cv2.imwrite(str(folder / f"good{number}.jpg"), noise(50 + number))
    write_table(root / "data" / "train.csv", rows)
    prepare_severstal(root / "data", root / "boxes")
    return root / "boxes"


def read_index(folder: Path) -> Any:
    return json.loads((folder / "patches.json").read_text())


def test_patches__the_pixels_of_their_squares(prepared: Path, tmp_path: Path) -> None:
    summary = cut_patches(prepared, tmp_path / "out", target=8)
    whole = 0
    index = read_index(tmp_path / "out")
    assert summary.counts == index["counts"] == {"class_1": 9, "class_3": 6}
    assert (summary.images, summary.left_out) == (6, 3)
    assert len(index["patches"]) == 15
    files = {row["file"] for row in index["patches"]}
    assert files == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    }
    for row in index["patches"]:
        stem = Path(row["image"]).stem
        assert row["file"].startswith(f"{row['class']}/cropped/{stem}_patch_")
        (x0, y0, x1, y1), box = row["window_xyxy"], row["box_xyxy"]
        assert x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1
        strip = read_image(prepared / "images" / row["image"])
        patch = read_image(tmp_path / "out" / row["file"])
        assert patch.shape == (8, 8, 3)
        if (x1 - x0) % 8 == 0:
            step = (x1 - x0) // 8
            means = strip[y0:y1, x0:x1].reshape(8, step, 8, step, 3).mean(axis=(1, 3))
            assert np.abs(patch - means).max() <= 0.5
            whole += 1
    assert whole >= 9


def test_patches__enlarged_without_a_shift(tmp_path: Path) -> None:
    boxes = make_prepared(tmp_path / "boxes", ("a.png",))
    ramp = np.tile(np.arange(60, dtype=np.uint8) * 4, (30, 1))
    cv2.imwrite(str(boxes / "images" / "a.png"), cv2.merge([ramp] * 3))
    cut_patches(boxes, tmp_path / "out", target=224)
    (row,) = read_index(tmp_path / "out")["patches"]
    x0, _, x1, _ = row["window_xyxy"]
    patch = read_image(tmp_path / "out" / row["file"])
    # The middle of pixel i of the patch lies at this place among the middles of the strip's.
    place = x0 + (np.arange(224) + 0.5) * (x1 - x0) / 224 - 0.5
    inner = slice(20, -20)
    assert np.abs(patch[:, inner, 0] - 4 * place[inner]).max() <= 1


def test_patches__no_image_in_two_splits(prepared: Path, tmp_path: Path) -> None:
    cut_patches(prepared, tmp_path / "out", target=16, background=8)
    classes, crops = find_crops(tmp_path / "out")
    assert classes == ("class_1", "class_3", "no_defect")
    index = read_index(tmp_path / "out")
    image_of = {row["file"]: row["image"] for row in index["patches"]}
    for crop in crops:
        file = crop.path.relative_to(tmp_path / "out").as_posix()
        assert crop.group == Path(image_of[file]).stem
    several = 0
    for seed in range(4):
        splits = split_crops(crops, 0.25, 0.25, seed)
        places = Counter(
            group for found in splits.values() for group in {crop.group for crop in found}
        )
        assert set(places.values()) == {1}
        several += all(splits.values())
    assert several == 4


def test_patches__background_of_good_strips(prepared: Path, tmp_path: Path) -> None:
    cut_patches(prepared, tmp_path / "out", target=16, background=8, seed=1)
    rows = [r for r in read_index(tmp_path / "out")["patches"] if r["class"] == "no_defect"]
    assert Counter(row["image"] for row in rows) == {f"good{i}.jpg": 2 for i in range(4)}
    sides = {
        r["window_xyxy"][2] - r["window_xyxy"][0]
        for r in read_index(tmp_path / "out")["patches"]
        if r["class"] != "no_defect"
    }
    for row in rows:
        x0, y0, x1, y1 = row["window_xyxy"]
        assert row["box_xyxy"] is None
        assert x1 - x0 == y1 - y0 and x1 - x0 in sides
        assert 0 <= x0 and x1 <= WIDTH and 0 <= y0 and y1 <= HEIGHT
    cut_patches(prepared, tmp_path / "again", target=16, background=8, seed=1, workers=2)
    assert read_index(tmp_path / "again") == read_index(tmp_path / "out")
    for row in rows:
        assert (tmp_path / "out" / row["file"]).read_bytes() == (
            tmp_path / "again" / row["file"]
        ).read_bytes()
    with pytest.raises(TkError) as caught:
        cut_patches(prepared, tmp_path / "none", background=21)
    assert (caught.value.expected, caught.value.found) == (
        "5 of them at --max-per-image 5",
        "4",
    )


def test_background__not_of_strips_with_a_splinter() -> None:
    good = DefectImage("good.jpg", 100, 40)
    splinter = DefectImage("splinter.jpg", 100, 40, small=1)
    bad = DefectImage("bad.jpg", 100, 40, (Defect(1, (0, 0, 9, 9), 40),))
    plan = plan_background([bad, splinter, good], [20], 3, most=3, seed=0)
    assert list(plan) == ["good.jpg"] and len(plan["good.jpg"]) == 3


def test_first_lit__steel_and_not_the_black_beside_it() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 60:] = 90
    dark, half, lit = (0, 0, 20, 20), (50, 0, 70, 20), (70, 5, 90, 25)
    assert first_lit(image, [dark, half, lit]) == lit
    assert first_lit(image, [dark]) is None


def test_patches__pictures(prepared: Path, tmp_path: Path) -> None:
    cut_patches(prepared, tmp_path / "out", target=32, pictures=2)
    found = sorted((tmp_path / "out" / ".extraction").glob("*_extraction.jpg"))
    assert len(found) == 2
    picture = cv2.imread(str(found[0]))
    assert picture is not None
    assert picture.shape[1] == WIDTH and picture.shape[0] > HEIGHT + 100
    cut_patches(prepared, tmp_path / "none", target=32, pictures=0)
    assert not (tmp_path / "none" / ".extraction").exists()


def test_patches__are_all_pictures_that_other_commands_find(prepared: Path, tmp_path: Path) -> None:
    cut_patches(prepared, tmp_path / "out", target=32, pictures=2)
    index = read_json(tmp_path / "out" / "patches.json")
    cut = [tmp_path / "out" / row["file"] for row in index["patches"]]
    assert find_images(tmp_path / "out") == sorted(cut)


def test_summary__weights_make_up_for_rare_classes() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    summary = PatchSummary({"class_1": 10, "class_3": 70})
    labels = np.repeat(["class_1", "class_3"], [10, 70])
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(list(summary.weights().values()), expected)
    assert summary.imbalance() == 7


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"target": 7}, "--target"),
        ({"context": -0.1}, "--context"),
        ({"context": float("nan")}, "--context"),
        ({"max_per_image": 0}, "--max-per-image"),
        ({"background": -1}, "--background"),
    ],
)
def test_patches__refuses_bad_arguments(
    prepared: Path, tmp_path: Path, arguments: dict[str, Any], option: str
) -> None:
    with pytest.raises(TkError, match=option):
        cut_patches(prepared, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def make_prepared(folder: Path, names: tuple[str, ...], defect: bool = True) -> Path:
    defects = [{"class_id": 2, "box_xyxy": [5, 5, 25, 25], "area": 200}] if defect else []
    entry = {"width": 60, "height": 30, "small": 0, "defects": defects}
    (folder / "images").mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "images" / name), np.full((30, 60, 3), 80, np.uint8))
    images = [{"image": name, **entry} for name in names]
    (folder / "defects.json").write_text(json.dumps({"images": images}))
    return folder


def test_patches__images_that_changed(tmp_path: Path) -> None:
    boxes = make_prepared(tmp_path / "boxes", ("a.png", "b.png", "c.png"))
    (boxes / "images" / "a.png").write_bytes(b"broken")
    cv2.imwrite(str(boxes / "images" / "b.png"), np.zeros((20, 60, 3), np.uint8))
    summary = cut_patches(boxes, tmp_path / "out")
    assert summary.counts == {"class_2": 1}
    assert sorted(summary.unreadable) == ["a.png", "b.png"]
    assert "was 60x30, is 60x20" in summary.unreadable["b.png"]
    (boxes / "images" / "c.png").unlink()
    with pytest.raises(TkError, match="no image of"):
        cut_patches(boxes, tmp_path / "none")


def test_patches__nothing_to_cut_or_no_way_to_the_images(tmp_path: Path) -> None:
    with pytest.raises(TkError, match="no defects"):
        cut_patches(make_prepared(tmp_path / "good", ("a.png",), defect=False), tmp_path / "out")
    with pytest.raises(TkError, match="same name"):
        cut_patches(make_prepared(tmp_path / "twice", ("a.png", "a.jpg")), tmp_path / "out")
    boxes = make_prepared(tmp_path / "moved", ("a.png",))
    (boxes / "images").rename(tmp_path / "elsewhere")
    (boxes / "images").symlink_to("../gone")
    with pytest.raises(TkError, match="does not lead") as caught:
        cut_patches(boxes, tmp_path / "out")
    assert "../gone" in caught.value.found
    assert not (tmp_path / "out").exists()


def test_patches__colour_stays_colour(tmp_path: Path) -> None:
    boxes = make_prepared(tmp_path / "boxes", ("a.png",))
    image = np.zeros((30, 60, 3), np.uint8)
    image[..., 2] = 200  # red, in OpenCV's order
    cv2.imwrite(str(boxes / "images" / "a.png"), image)
    cut_patches(boxes, tmp_path / "out", target=16)
    patch = read_image(tmp_path / "out" / "class_2" / "cropped" / "a_patch_1.png")
    assert (patch == (200, 0, 0)).all()
