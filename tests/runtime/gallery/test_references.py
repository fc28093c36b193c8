"""Which mask a reference gets: the one that training takes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tk.runtime.errors import TkError
from tk.runtime.gallery.references import (
    Reference,
    find_references,
    reference_crop,
    single_reference,
)
from tk.runtime.preprocess import CropSpec
from tk.train.embedder.data import cut_picture, find_crops, read_picture

MASKED = CropSpec(margin=0.0, background="mask", fill=(0, 0, 0))
PICTURE = np.random.default_rng(0).integers(60, 250, (30, 20, 3)).astype(np.uint8)


def write(path: Path, left: int, *, alpha: bool = False) -> Path:
    """A mask of rows 5 to 25 and columns `left` to 18, grey or as the alpha of a cutout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:25, left:18] = 255
    Image.fromarray(np.dstack([PICTURE, mask]) if alpha else mask).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with every kind of mask; the left edge of the mask tells which one was taken."""
    for name in ("a", "ключ й"):
        for stem in ("both", "cutout", "short", "mask", "bare", "mask_rgba", "грань й"):
            (tmp_path / name / "cropped").mkdir(parents=True, exist_ok=True)
            Image.fromarray(PICTURE).save(tmp_path / name / "cropped" / f"{stem}.png")
        write(tmp_path / name / "cutouts" / "both_cutout.png", 1, alpha=True)
        write(tmp_path / name / "masks" / "both_mask.png", 9)
        write(tmp_path / name / "cutouts" / "cutout_cutout.png", 2, alpha=True)
        write(tmp_path / name / "cutouts" / "cutout.png", 9, alpha=True)
        write(tmp_path / name / "cutouts" / "short.png", 3, alpha=True)
        write(tmp_path / name / "masks" / "mask.png", 4)
        write(tmp_path / name / "masks" / "mask_rgba_mask.png", 6, alpha=True)
        decomposed = unicodedata.normalize("NFD", "грань й")
        write(tmp_path / name / "masks" / f"{decomposed}_mask.png", 5)
    return tmp_path


LEFT = {"both": 1, "cutout": 2, "short": 3, "mask": 4, "грань й": 5, "mask_rgba": 6}


def test_references__the_masks_of_training(folder: Path) -> None:
    references = find_references(folder)
    classes, crops = find_crops(folder)
    theirs = {crop.path: crop for crop in crops}
    assert len(references) == len(crops) == 14
    for reference in references:
        crop = theirs[reference.file]
        assert reference.class_name == classes[crop.label]
        assert reference.mask_file == crop.mask
        assert single_reference(reference.file) == reference
        if reference.mask_file is None:
            assert reference.file.stem == "bare"
            continue
        cut = reference_crop(reference, MASKED)
        assert cut.shape == (20, 18 - LEFT[reference.file.stem], 3)
        np.testing.assert_array_equal(cut, cut_picture(read_picture(crop), MASKED))


def test_references__images_beside_the_mask_folders(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(_made(tmp_path / "a") / "x.png")
    write(tmp_path / "a" / "cutouts" / "x_cutout.png", 3, alpha=True)
    (reference,) = find_references(tmp_path)
    assert reference.mask_file == tmp_path / "a" / "cutouts" / "x_cutout.png"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_references__mask_beside_wins_over_the_own_alpha_channel(tmp_path: Path) -> None:
    opaque = np.dstack([PICTURE, np.full((30, 20), 255, np.uint8)])
    Image.fromarray(opaque).save(_made(tmp_path / "a" / "cropped") / "x.png")
    mask = write(tmp_path / "a" / "masks" / "x.png", 7)
    (reference,) = find_references(tmp_path)
    assert reference == Reference("a", tmp_path / "a" / "cropped" / "x.png", mask)
    assert reference_crop(reference, MASKED).shape == (20, 11, 3)


def test_reference_crop__mask_of_another_size_or_empty(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    for mask, words in ((np.ones((9, 9)), "another size"), (np.zeros((30, 20)), "is empty")):
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(TkError, match=words):
            reference_crop(Reference("a", tmp_path / "x.png", tmp_path / "m.png"), MASKED)
