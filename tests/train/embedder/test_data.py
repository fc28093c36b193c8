from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.references import find_references, reference_crop
from tk.runtime.images import ImageError
from tk.runtime.preprocess import CropSpec
from tk.train.embedder.cache import Budget, Cache
from tk.train.embedder.config import EmbedderConfig
from tk.train.embedder.data import (
    CropFile,
    Picture,
    check_class_sizes,
    cut_picture,
    find_crops,
    read_picture,
)
from tk.train.embedder.train import train_embedder
from tk.train.run.options import validate


def write(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, image)
    path.write_bytes(data.tobytes())
    return path


GREY = np.full((12, 20, 3), 90, np.uint8)


def box_mask(x0: int, x1: int) -> NDArray[np.uint8]:
    mask = np.zeros((12, 20), np.uint8)
    mask[3:9, x0:x1] = 255
    return mask


def cutout(x0: int, x1: int) -> NDArray[np.uint8]:
    return np.dstack([GREY, box_mask(x0, x1)])


def test_find_crops__layouts_and_masks(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Ключ рожковый")
    write(tmp_path / decomposed / "cropped" / "scene_00012_03.png", GREY)
    write(tmp_path / decomposed / "masks" / "scene_00012_03_mask.png", box_mask(2, 8))
    write(tmp_path / decomposed / "ignored.png", GREY)
    write(tmp_path / "brace" / "DSCN_1234.png", GREY)
    write(tmp_path / "brace" / "b.JPG", GREY)
    write(tmp_path / "brace" / "masks" / "DSCN_1234.png", box_mask(0, 20))
    write(tmp_path / "brace" / "cutouts" / "DSCN_1234_cutout.png", cutout(5, 9))
    (tmp_path / ".cache").mkdir()
    classes, crops = find_crops(tmp_path)
    assert classes == ("brace", "Ключ рожковый")
    assert [(c.label, c.path.name, c.group) for c in crops] == [
        (0, "DSCN_1234.png", "DSCN_1234"),
        (0, "b.JPG", "b"),
        (1, "scene_00012_03.png", "scene_00012"),
    ]
    assert [c.mask.name if c.mask else None for c in crops] == [
        "DSCN_1234_cutout.png",
        None,
        "scene_00012_03_mask.png",
    ]
    mask = read_picture(crops[0]).mask
    assert mask is not None and mask.nonzero()[1].tolist() == [5, 6, 7, 8] * 6


def test_find_crops__needs_two_classes(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(TkError, match="only"):
        find_crops(tmp_path)
    with pytest.raises(TkError, match="is not a folder"):
        find_crops(tmp_path / "absent")


def test_find_crops__equal_stems_are_two_crops(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png", "2.png"):
        write(tmp_path / "a" / "cropped" / name, GREY)
    for form in ("NFC", "NFD"):  # Linux keeps both
        write(tmp_path / unicodedata.normalize(form, "йод") / f"{form}.png", GREY)
    classes, crops = find_crops(tmp_path)
    assert classes == ("a", "йод")
    names = [(crop.label, crop.path.name) for crop in crops]
    assert names[:3] == [(0, "1.jpg"), (0, "1.png"), (0, "2.png")]
    assert sorted(names[3:]) == [(1, "NFC.png"), (1, "NFD.png")]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four class folders with the same two file names in each."""
    for name in ("ключ 10", "ключ 12", "молоток", unicodedata.normalize("NFD", "йод [1]")):
        for file in ("1.png", "2.png"):
            write(tmp_path / name / "cropped" / file, GREY)
    return tmp_path


@pytest.mark.parametrize(
    ("merge", "exclude", "expected"),
    [
        ([], [], {"ключ 10": 2, "ключ 12": 2, "молоток": 2, "йод [1]": 2}),
        (["ключ 10=ключ 12"], [], {"ключ 12": 4, "молоток": 2, "йод [1]": 2}),
        (["ключ 1? = ключ"], [], {"ключ": 4, "молоток": 2, "йод [1]": 2}),
        (["ключ*=ключ", "молоток=ключ"], [], {"ключ": 6, "йод [1]": 2}),
        (["ключ*=молоток"], [], {"молоток": 6, "йод [1]": 2}),
        (["йод [1]=y"], [], {"ключ 10": 2, "ключ 12": 2, "молоток": 2, "y": 2}),
        ([], ["ключ*"], {"молоток": 2, "йод [1]": 2}),
        ([], ["йод [1]", "*/2.png"], {"ключ 10": 1, "ключ 12": 1, "молоток": 1}),
        (["ключ*=ключ"], ["ключ 10/1.png"], {"ключ": 3, "молоток": 2, "йод [1]": 2}),
        (["ключ*=ключ"], ["ключ 12"], {"ключ": 2, "молоток": 2, "йод [1]": 2}),
    ],
)
def test_find_crops__merge_and_exclude(
    folders: Path, merge: list[str], exclude: list[str], expected: dict[str, int]
) -> None:
    decomposed = [unicodedata.normalize("NFD", rule) for rule in merge + exclude]
    classes, crops = find_crops(
        folders, merge=decomposed[: len(merge)], exclude=decomposed[len(merge) :]
    )
    assert {name: sum(c.label == i for c in crops) for i, name in enumerate(classes)} == expected
    assert list(classes) == sorted(classes)
    assert len({crop.path for crop in crops}) == len(crops)


@pytest.mark.parametrize(
    ("merge", "exclude", "message"),
    [
        (["лом=ключ"], [], "no class folder лом.*йод .1., ключ 10, ключ 12, молоток"),
        (["Ключ*=ключ"], [], "no class folder"),
        (["ключ 10"], [], "FROM=TO"),
        (["=ключ"], [], "FROM=TO"),
        (["ключ*=a", "ключ 10=b"], [], "puts ключ 10 into two classes"),
        (["ключ 10=ключ 12", "ключ 12=молоток"], [], "folder ключ 12 goes to молоток"),
        ([], ["лом*", "молоток"], "matches nothing: лом.*folders: йод"),
        ([], ["молоток/3.png"], "matches nothing: молоток/3.png"),
        ([], ["МОЛОТОК"], "matches nothing"),
        ([], ["ключ*", "молоток"], "too few classes"),
        (["*=всё"], [], "too few classes"),
    ],
)
def test_find_crops__rules_that_cannot_be_meant(
    folders: Path, merge: list[str], exclude: list[str], message: str
) -> None:
    with pytest.raises(TkError, match=f"(?s){message}"):
        find_crops(folders, merge=merge, exclude=exclude)


def test_read_picture__own_alpha_as_in_a_gallery(tmp_path: Path) -> None:
    file = write(tmp_path / "gallery" / "a" / "1.png", cutout(5, 9))
    picture = read_picture(CropFile(file, 0, "1"))
    assert picture.mask is not None and (picture.mask == (box_mask(5, 9) > 0)).all()
    for spec in (CropSpec(), CropSpec(margin=0.1, background="mask", fill=(1, 2, 3))):
        expected = reference_crop(find_references(tmp_path / "gallery")[0], spec)
        assert (cut_picture(picture, spec) == expected).all()
    beside = write(tmp_path / "m.png", box_mask(2, 4))
    picture = read_picture(CropFile(file, 0, "1", beside))
    assert picture.mask is not None and (picture.mask == (box_mask(2, 4) > 0)).all()
    with pytest.raises(ImageError, match="transparent everywhere"):
        read_picture(CropFile(write(tmp_path / "b.png", cutout(5, 5)), 0, "b"))


@pytest.mark.parametrize("kind", ["none", "broken", "empty", "other size"])
def test_read_picture__unusable_mask_counts_as_none(tmp_path: Path, kind: str) -> None:
    masks = {"empty": np.zeros((12, 20), np.uint8), "other size": np.full((4, 4), 255, np.uint8)}
    mask = None
    if kind != "none":
        mask = write(tmp_path / "m.png", masks.get(kind, GREY))
    if kind == "broken" and mask:
        mask.write_bytes(mask.read_bytes()[:40])
    picture = read_picture(CropFile(write(tmp_path / "a.png", GREY), 0, "a", mask))
    assert picture.mask is None
    assert cut_picture(picture, CropSpec()).shape == GREY.shape


def test_cut_picture__tight_box_of_the_mask_and_margin() -> None:
    picture = Picture(GREY, box_mask(5, 15) > 0)
    kept = cut_picture(picture, CropSpec(margin=0.1))
    assert kept.shape == (8, 12, 3) and (kept == 90).all()
    painted = cut_picture(picture, CropSpec(margin=0.1, background="mask", fill=(1, 2, 3)))
    assert painted[0, 0].tolist() == [1, 2, 3] and (painted[1:7, 1:11] == 90).all()


def test_check_class_sizes__lists_the_small_ones() -> None:
    crops = [CropFile(Path(f"{i}"), i % 3, "") for i in range(8)]
    check_class_sizes(("a", "b", "c"), crops, 2)
    with pytest.raises(TkError, match=r"c: 2, d: 0; 4 unusable") as caught:
        check_class_sizes(("a", "b", "c", "d"), crops, 3, skipped=4)
    assert caught.value.exit_code == 2


def test_cache__bound_and_broken_files(tmp_path: Path) -> None:
    crops = [CropFile(write(tmp_path / f"{i}.png", GREY + i), 0, "") for i in range(4)]
    crops[1].path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    reads: list[str] = []

    def make(crop: CropFile) -> NDArray[np.uint8]:
        reads.append(crop.path.name)
        return read_picture(crop).image

    budget = Budget(2 * GREY.nbytes + 10)
    cache = Cache(crops, make, lambda image: image.nbytes, budget)
    assert [crop.path.name for crop in cache.crops] == ["0.png", "2.png", "3.png"]
    assert len(cache.skipped) == 1 and "1.png" in cache.skipped[0]
    assert budget.left == 10
    reads.clear()
    assert [int(cache[i][0, 0, 0]) for i in range(3)] == [90, 92, 93]
    assert reads == ["3.png"]
    crops[3].path.unlink()
    with pytest.raises(TkError, match="changed during the training"):
        cache[2]


def test_read_picture__broken_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageError):
        read_picture(CropFile(tmp_path / "a.jpg", 0, "a"))


def test_train_embedder__small_classes_exit_2_with_the_list(tmp_path: Path) -> None:
    for name, count in (("ключ", 3), ("молоток", 5), ("лом", 1)):
        for i in range(count):
            write(tmp_path / "data" / name / "cropped" / f"{i}.jpg", GREY)
    write(tmp_path / "data" / "пусто" / "masks" / "1.png", box_mask(0, 9))
    command = [sys.executable, "-m", "tk.cli", "train", "embedder", "--min_per_class", "4"]
    command += ["--data_root", str(tmp_path / "data"), "--out_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "ключ: 3, лом: 1, пусто: 0" in done.stderr and "молоток" not in done.stderr
    assert "--min_per_class" in done.stderr and "Traceback" not in done.stderr


def test_train_embedder__merged_classes_have_prototypes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ключ 10", "ключ 12", "молоток", "лишнее")):
        for i in range(10):
            noise = rng.integers(0, 60, (12, 20, 3), dtype=np.uint8)
            write(tmp_path / "data" / name / f"{i}.png", noise + np.uint8(60 * number))
    config = validate(
        EmbedderConfig,
        {
            "data_root": tmp_path / "data",
            "out_dir": tmp_path / "run",
            "merge": ["ключ*=ключ"],
            "exclude": ["лишнее"],
            "model_id": "test_resnet",
            "pretrained": False,
            "img_size": 32,
            "epochs": 1,
            "device": "cpu",
        },
    )
    train_embedder(config)
    with np.load(tmp_path / "run" / "prototypes.npz", allow_pickle=False) as file:
        assert file["id2cls"].tolist() == ["ключ", "молоток"]
        assert np.bincount(file["stack_labels"]).tolist() == [14, 7]
        assert len(file["centroids"]) == 2
    splits = json.loads((tmp_path / "run" / "splits.json").read_text(encoding="utf-8"))
    assert splits["counts"]["train"] == {"ключ": 14, "молоток": 7}
    files = [name for part in splits["files"].values() for name in part["ключ"]]
    expected = [f"ключ {size}/{i}.png" for size in (10, 12) for i in range(10)]
    assert sorted(files) == sorted(expected)
