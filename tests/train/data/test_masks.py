from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tk.runtime.errors import Interrupted, TkError
from tk.runtime.images import read_image
from tk.runtime.preprocess import Image
from tk.train.data.masks import generate
from tk.train.data.masks.generate import Limits, ensure_masks, generate_masks
from tk.train.data.masks.masker import Answer, config_for
from tk.train.data.masks.report import MaskReport, Outcome, write_report
from tk.train.data.masks.sam2 import open_masker
from tk.train.data.masks.sheet import TILES, Sheet
from tk.train.embedder.data import CropFile, find_crops, read_picture

Behave = dict[int, Answer | BaseException]


class ByGrey:
    """Answers by the grey value of the crop's first pixel; else a good mask of the bright part."""

    def __init__(self, behave: Behave | None = None) -> None:
        self.behave = behave or {}
        self.calls: list[int] = []

    def masks(self, images: Sequence[Image]) -> list[Answer]:
        self.calls.append(len(images))
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Answer:
        answer = self.behave.get(int(image[0, 0, 0]), (image[..., 0] > 127, 0.9))
        if isinstance(answer, BaseException):
            raise answer
        return answer


def crop(path: Path, corner: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    """A dark picture with a bright square; its first pixel has the value `corner`."""
    image = np.zeros((*size, 3), np.uint8)
    image[5:15, 5:15] = 255
    image[0, 0] = corner
    return picture(path, image)


def picture(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, image)
    path.write_bytes(data.tobytes())
    return path


def crops_of(root: Path) -> list[CropFile]:
    return find_crops(root)[1]


def covering(share: float) -> NDArray[np.bool_]:
    mask = np.zeros(600, bool)
    mask[: round(600 * share)] = True
    return mask.reshape(20, 30)


def test_generate__writes_what_training_reads(tmp_path: Path) -> None:
    crop(tmp_path / "Ключ" / "cropped" / "a.png")
    crop(tmp_path / "b" / "flat.v2.JPG", size=(40, 25))
    masker = ByGrey()
    done = generate_masks(tmp_path, masker, crops_of(tmp_path))
    assert (done.crops, done.present, done.made) == (2, 0, 2)
    assert (tmp_path / "Ключ" / "masks" / "a_mask.png").is_file()
    for item in crops_of(tmp_path):
        assert item.mask is not None
        grey = read_image(item.mask)
        assert set(np.unique(grey)) == {0, 255}
        expected = read_image(item.path)[..., 0] > 127
        assert np.array_equal(read_picture(item).mask, expected)  # type: ignore[arg-type]
    again = generate_masks(tmp_path, masker, crops_of(tmp_path))
    assert (again.present, again.made, again.outcomes) == (2, 0, ())
    assert masker.calls == [2]


@pytest.mark.parametrize(
    ("iou", "area", "objection"),
    [
        (0.9, 0.0, "empty mask"),
        (0.9, 0.01, "mask too small"),
        (0.9, 0.02, ""),
        (0.9, 0.98, ""),
        (0.9, 0.99, "mask covers the crop"),
        (0.9, 1.0, "mask covers the crop"),
        (0.5, 0.5, ""),
        (0.49, 0.5, "low predicted IoU"),
        (float("nan"), 0.5, "low predicted IoU"),
    ],
)
def test_limits__edges(iou: float, area: float, objection: str) -> None:
    assert Limits().objection(iou, area) == objection


def test_limits__empty_mask_is_refused_at_every_setting() -> None:
    assert Limits(0, 0, 1).objection(1.0, 0.0)


def test_generate__failures_leave_no_mask_and_are_told(tmp_path: Path) -> None:
    for grey in range(6):
        crop(tmp_path / "data" / "a" / f"{grey}.png", grey)
    (tmp_path / "data" / "a" / "6.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    crop(tmp_path / "data" / "b" / "fine.png", 9)
    behave: Behave = {
        1: (covering(0), 0.9),
        2: (covering(1), 0.9),
        3: (covering(0.5), 0.2),
        4: RuntimeError("out of memory:\n tried"),
        5: (np.ones((3, 3), bool), 0.9),
    }
    root, table = tmp_path / "data", tmp_path / "out" / "masks.csv"
    masker = ByGrey(behave)
    done = generate_masks(root, masker, crops_of(root), report=table, batch_size=4)
    made = sorted(path.relative_to(root).as_posix() for path in root.rglob("*_mask.png"))
    assert made == ["a/masks/0_mask.png", "b/masks/fine_mask.png"]
    assert (done.made, len(done.skipped)) == (2, 6)
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = {row["crop"]: row for row in csv.DictReader(file)}
    assert rows["a/0.png"] == {
        "crop": "a/0.png", "result": "made", "reason": "", "iou": "0.9000", "area": "0.1667",
    }  # fmt: skip
    reasons = {name: row["reason"] for name, row in rows.items() if row["result"] == "skipped"}
    assert reasons["a/1.png"] == "empty mask"
    assert reasons["a/2.png"] == "mask covers the crop"
    assert reasons["a/3.png"] == "low predicted IoU" and rows["a/3.png"]["iou"] == "0.2000"
    assert reasons["a/4.png"] == "model failed: RuntimeError: out of memory: tried"
    assert reasons["a/5.png"].startswith("model failed: ValueError: a mask (3, 3)")
    assert reasons["a/6.png"].startswith("unreadable crop: 6.png is truncated")
    assert masker.calls == [4, 3, 1, 1, 1]  # only the batch with the failures is asked again
    assert "model failed: 2" in done.summary() and "8 crops: 0 had a mask, 2 made" in done.summary()


def unusable(root: Path) -> dict[str, bytes]:
    """Crops whose masks cannot be used; the files by name."""
    for name in ("good", "broken", "empty", "size", "plain", "other", "cut"):
        crop(root / "a" / "cropped" / f"{name}.png")
    crop(root / "b" / "cropped" / "b.png")
    masks = root / "a" / "masks"
    picture(masks / "good_mask.png", np.full((20, 30), 255, np.uint8))
    (masks / "broken_mask.png").write_bytes(b"nothing")
    picture(masks / "empty_mask.png", np.zeros((20, 30), np.uint8))
    picture(masks / "size_mask.png", np.full((20, 31), 255, np.uint8))
    picture(masks / "plain.png", np.zeros((20, 30), np.uint8))
    picture(masks / "other_mask.tif", np.zeros((20, 30), np.uint8))  # .tif comes after .png
    picture(root / "a" / "cutouts" / "cut_cutout.png", np.zeros((20, 30, 4), np.uint8))
    folders = (masks, root / "a" / "cutouts")
    return {path.name: path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_generate__files_that_are_there_stay(tmp_path: Path) -> None:
    before = unusable(tmp_path)
    done = generate_masks(tmp_path, ByGrey(), crops_of(tmp_path))
    assert (done.present, done.made) == (1, 1)
    assert {item.crop.split("/")[-1]: item.reason.split(":")[0] for item in done.unusable} == {
        "broken.png": "broken mask file",
        "cut.png": "empty mask file",
        "empty.png": "empty mask file",
        "other.png": "empty mask file",
        "plain.png": "empty mask file",
        "size.png": "mask of another size",
    }
    files = [*(tmp_path / "a" / "masks").iterdir(), *(tmp_path / "a" / "cutouts").iterdir()]
    assert {path.name: path.read_bytes() for path in files} == before


def test_generate__overwrite_replaces_only_unusable_masks(tmp_path: Path) -> None:
    before = unusable(tmp_path)
    done = generate_masks(tmp_path, ByGrey(), crops_of(tmp_path), overwrite=True)
    assert (done.present, done.made) == (1, 6)
    assert [item.crop for item in done.unusable] == ["a/cropped/cut.png"]
    masks = tmp_path / "a" / "masks"
    assert (masks / "good_mask.png").read_bytes() == before["good_mask.png"]
    cutout = tmp_path / "a" / "cutouts" / "cut_cutout.png"
    assert cutout.read_bytes() == before["cut_cutout.png"]
    found = {item.path.stem: read_picture(item).mask for item in crops_of(tmp_path)}
    assert [stem for stem, mask in found.items() if mask is None] == ["cut"]
    good = found.pop("good")
    assert good is not None and good.all()
    assert all(mask.sum() == 100 for mask in found.values() if mask is not None)


def test_generate__interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    root, table = tmp_path / "data", tmp_path / "masks.csv"
    for index in range(6):
        crop(root / "ab"[index % 2] / f"{index}.png", index)
    masker = ByGrey({5: KeyboardInterrupt()})
    with pytest.raises(Interrupted, match="4 made"):
        generate_masks(root, masker, crops_of(root), batch_size=2, report=table)
    assert len(table.read_text("utf-8").splitlines()) == 5
    done = generate_masks(root, ByGrey(), crops_of(root))
    assert (done.present, done.made) == (4, 2)


def test_generate__a_broken_model_ends_the_run(tmp_path: Path) -> None:
    for index in range(40):
        crop(tmp_path / "ab"[index % 2] / f"{index}.png")
    masker = ByGrey({0: RuntimeError("CUDA error")})
    with pytest.raises(TkError, match="failed on 16 crops in a row"):
        generate_masks(tmp_path, masker, crops_of(tmp_path), batch_size=1)
    assert len(masker.calls) == generate.GIVE_UP


def test_generate__large_crops_make_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        crop(tmp_path / name / "x.png")
    monkeypatch.setattr(generate, "BATCH_PIXELS", 1300)
    masker = ByGrey()
    generate_masks(tmp_path, masker, crops_of(tmp_path))
    assert masker.calls == [2, 2]


def test_generate__failures_here_and_there_do_not_end_it(tmp_path: Path) -> None:
    for index in range(40):
        crop(tmp_path / "ab"[index // 20] / f"{index:02}.png", index % 2)
    masker = ByGrey({0: RuntimeError("odd crop")})
    done = generate_masks(tmp_path, masker, crops_of(tmp_path))
    assert (done.made, len(done.skipped)) == (20, 20)


@pytest.mark.parametrize("obstacle", ["file", "rights"])
def test_generate__folder_that_cannot_be_written(tmp_path: Path, obstacle: str) -> None:
    crop(tmp_path / "a" / "x.png")
    crop(tmp_path / "b" / "x.png")
    if obstacle == "file":
        (tmp_path / "b" / "masks").write_text("")
    elif os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    else:
        (tmp_path / "b").chmod(0o555)
    masker = ByGrey()
    with pytest.raises(TkError, match="masks cannot be written"):
        generate_masks(tmp_path, masker, crops_of(tmp_path))
    assert not masker.calls and not list(tmp_path.rglob("*_mask.png"))


def test_ensure__without_work_opens_nothing(tmp_path: Path) -> None:
    for name in "ab":
        crop(tmp_path / "data" / name / "x.png")
        picture(tmp_path / "data" / name / "masks" / "x.png", np.full((20, 30), 255, np.uint8))
    out = tmp_path / "run"
    files = {"sam2_cfg": "", "sam2_ckpt": "no/such/model", "device": "cpu"}
    done = ensure_masks(tmp_path / "data", crops_of(tmp_path / "data"), out=out, **files)
    assert (done.crops, done.present, done.made) == (2, 2, 0)
    (tmp_path / "data" / "a" / "masks" / "x.png").unlink()
    with pytest.raises(TkError, match="no/such/model does not exist"):
        ensure_masks(tmp_path / "data", crops_of(tmp_path / "data"), out=out, **files)
    assert not out.exists()  # no report of a run that did not begin


def test_open__neither_option_names_both_ways() -> None:
    with pytest.raises(TkError) as caught:
        open_masker("", "", "cpu")
    assert "--sam2_cfg configs/sam2.1/" in str(caught.value)
    assert "Hugging Face" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sam2.1_hiera_large.pt", "configs/sam2.1/sam2.1_hiera_l.yaml"),
        ("sam2_hiera_base_plus.pt", "configs/sam2/sam2_hiera_b+.yaml"),
        ("mine.pt", ""),
    ],
)
def test_config_for__released_names(name: str, config: str) -> None:
    assert config_for(name) == config


def test_report__survives_odd_names(tmp_path: Path) -> None:
    odd = Outcome('ключ/a, "b".png', "skipped", "model failed: x")
    write_report(tmp_path / "r.csv", MaskReport(1, 0, (odd,)))
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file))[1] == [odd.crop, "skipped", odd.reason, "", ""]


def test_sheet__shows_mask_and_stays_small(tmp_path: Path) -> None:
    grey = np.full((50, 100, 3), 120, np.uint8)
    mask = np.zeros((50, 100), bool)
    mask[:, 50:] = True
    sheet = Sheet()
    sheet.add(grey, mask, Outcome("a/x.png", "made", "", 0.9, 0.5))
    sheet.write(tmp_path / "one.png")
    one = read_image(tmp_path / "one.png")
    # The tile starts at 6, its picture 20 lower; the right half lies under green.
    assert tuple(one[26 + 50, 6 + 50]) == (120, 120, 120)
    red, green, blue = map(int, one[26 + 50, 6 + 150])
    assert green > red + 20 and green > blue + 20
    for index in range(5 * TILES):
        sheet.add(grey, None, Outcome(f"a/{index}.png", "skipped", "model failed: x"))
    sheet.write(tmp_path / "many.png")
    many = read_image(tmp_path / "many.png")
    assert many.shape[0] <= 8 * 226 + 6 and many.shape[1] == 8 * 206 + 6


def test_sheet__nothing_to_show(tmp_path: Path) -> None:
    Sheet().write(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
