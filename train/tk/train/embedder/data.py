"""Crops on disk: which files belong to which class, and reading one with its mask.

DATA_ROOT/<class>/cropped/*              else the images in the class folder itself
DATA_ROOT/<class>/cutouts/{stem}_cutout.png or {stem}.png     RGBA, the alpha channel is the mask
DATA_ROOT/<class>/masks/{stem}_mask.png or {stem}.png         grey; cutouts win
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.images import EXTENSIONS, ImageError, read_image, read_reference
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, cut_crop

_PHOTO = re.compile(r"(.*\d{3,})[_-]\d{1,3}")
"""`scene_00012_03`: the third crop of photo `scene_00012`; `DSCN_1234` is a photo of its own."""


@dataclass(frozen=True)
class CropFile:
    """One training crop.

    Attributes:
        path: the image file.
        label: index of its class.
        group: name of the photo it was cut from; crops of one photo stay in one split.
        mask: cutout or mask file, if there is one.
    """

    path: Path
    label: int
    group: str
    mask: Path | None = None


@dataclass(frozen=True)
class Picture:
    """A crop in memory: `image: (H, W, 3) uint8 RGB` and `mask: (H, W) bool` or None."""

    image: Image
    mask: NDArray[np.bool_] | None


def find_crops(root: Path) -> tuple[tuple[str, ...], list[CropFile]]:
    """List the crops of a data set.

    Returns:
        class names (NFC, sorted) and the crops, class by class in the order of their names.

    Raises:
        TkError: no such folder, or fewer than two classes in it.
    """
    if not root.is_dir():
        raise TkError(f"{root} is not a folder", expected="data_root/<class>/cropped/*")
    folders = {_nfc(path.name): path for path in root.iterdir() if path.is_dir() and _visible(path)}
    classes = tuple(sorted(folders))
    if len(classes) < 2:
        raise TkError(
            f"{root} holds too few classes to tell apart",
            expected="two or more folders data_root/<class>/cropped/*",
            found=", ".join(classes) or "no folders",
        )
    crops = [crop for label, name in enumerate(classes) for crop in _of_class(folders[name], label)]
    return classes, crops


def _of_class(folder: Path, label: int) -> list[CropFile]:
    cutouts, masks = _by_stem(folder / "cutouts"), _by_stem(folder / "masks")
    cropped = folder / "cropped"
    found = []
    for stem, path in sorted(_by_stem(cropped if cropped.is_dir() else folder).items()):
        names = [cutouts.get(f"{stem}_cutout"), cutouts.get(stem)]
        names += [masks.get(f"{stem}_mask"), masks.get(stem)]
        match = _PHOTO.fullmatch(stem)
        mask = next((name for name in names if name is not None), None)
        found.append(CropFile(path, label, match[1] if match else stem, mask))
    return found


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files right in a folder, by NFC stem (macOS stores names decomposed)."""
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.is_file() and _visible(path))
    return {_nfc(path.stem): path for path in sorted(files) if path.suffix.lower() in EXTENSIONS}


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def read_picture(crop: CropFile) -> Picture:
    """Read a crop and its mask; a mask that is broken, empty or of another size counts as none.

    Raises:
        ImageError: the image is broken.
    """
    image = read_image(crop.path)
    mask = None if crop.mask is None else _read_mask(crop.mask)
    if mask is not None and (mask.shape != image.shape[:2] or not mask.any()):
        mask = None
    return Picture(image, mask)


def _read_mask(path: Path) -> NDArray[np.bool_] | None:
    try:
        image, alpha = read_reference(path)
    except ImageError:
        return None
    return image[..., 0] > 127 if alpha is None else alpha


def cut_picture(picture: Picture, spec: CropSpec) -> Image:
    """Cut the object out as the runtime does: by the tight box of its mask, if there is one."""
    if picture.mask is None:
        return picture.image
    height, width = picture.mask.shape
    region = BoxMask(0, 0, picture.mask, height, width)
    box = region.tight_box()
    if box is None:
        raise ImageError("the mask of a crop is empty")
    return cut_crop(picture.image, box, spec, region)


def check_class_sizes(
    classes: Sequence[str], crops: Iterable[CropFile], least: int, skipped: int = 0
) -> None:
    """Refuse classes with fewer than `least` crops.

    Args:
        skipped: how many crops were left out as unusable, for the error's text.

    Raises:
        TkError: names every such class and its number of crops.
    """
    counts = [0] * len(classes)
    for crop in crops:
        counts[crop.label] += 1
    few = [f"{name}: {n}" for name, n in zip(classes, counts, strict=True) if n < least]
    if few:
        raise TkError(
            "classes with too few images",
            expected=f"at least {least} in each (--min_per_class)",
            found=", ".join(few) + (f"; {skipped} unusable files left out" if skipped else ""),
            fix="add images, remove the class folder, or lower --min_per_class",
        )
