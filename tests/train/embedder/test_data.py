from __future__ import annotations

import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import ImageError
from tk.runtime.preprocess import CropSpec
from tk.train.embedder.cache import Budget, Cache
from tk.train.embedder.data import (
    CropFile,
    Picture,
    check_class_sizes,
    cut_picture,
    find_crops,
    read_picture,
)


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
