"""Crops on disk: which files belong to which class, and reading one with its mask.

DATA_ROOT/<class>/cropped/*              else the images in the class folder itself
DATA_ROOT/<class>/cutouts/{stem}_cutout.png or {stem}.png     RGBA, the alpha channel is the mask
DATA_ROOT/<class>/masks/{stem}_mask.png or {stem}.png         grey; cutouts win

An RGBA crop without either has its own alpha channel as its mask, as in a gallery of references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import enlarge
from tk.runtime.errors import TkError
from tk.runtime.images import EXTENSIONS, ImageError, read_image, read_reference
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, cut_crop
from tk.train.embedder.rules import Exclusion, merged_classes, nfc

_PHOTO = re.compile(r"(.+)_patch_\d+|(.*\d{3,})[_-]\d{1,3}")
"""`scene_00012_03`: the third crop of photo `scene_00012`; `DSCN_1234` is a photo of its own.

`0002cc93b_patch_2` of `tk data patches`: the second of `0002cc93b`, whatever that name ends in."""


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


def find_crops(
    root: Path, *, merge: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[CropFile]]:
    """List the crops of a data set.

    Args:
        root: folder with a folder for every class.
        merge: rules `FROM=TO`: the crops of class folder FROM (a name or a shell pattern) belong to
            class TO.
        exclude: shell patterns of class folders, or of FOLDER/FILE, to leave out.

    Returns:
        class names (NFC, sorted) and the crops, folder by folder in the order of their names.

    Raises:
        TkError: no such folder, fewer than two classes, a rule or pattern that names nothing.
    """
    if not root.is_dir():
        raise TkError(f"{root} is not a folder", expected="data_root/<class>/cropped/*")
    # A list: one name may be there twice, composed and decomposed.
    folders = sorted(
        (nfc(path.name), path) for path in root.iterdir() if path.is_dir() and _visible(path)
    )
    names = sorted({name for name, _ in folders})
    exclusion = Exclusion(exclude)
    class_of = merged_classes(names, merge)
    kept = [(name, path) for name, path in folders if not exclusion.excludes(name)]
    classes = tuple(sorted({class_of[name] for name, _ in kept}))
    crops = [
        crop
        for name, folder in kept
        for crop in _of_folder(folder, classes.index(class_of[name]))
        if not exclusion.excludes(f"{name}/{nfc(crop.path.name)}")
    ]
    exclusion.check(names)
    if len(classes) < 2:
        raise TkError(
            f"{root} holds too few classes to tell apart",
            expected="two or more folders data_root/<class>/cropped/*",
            found=", ".join(classes) or "no folders",
            fix="give the folder above, if this is the folder of one class",
        )
    _check_names(classes, crops)
    return classes, crops


def _check_names(classes: Sequence[str], crops: Sequence[CropFile]) -> None:
    """Refuse names that no JSON can hold: archives made on other systems bring them."""
    for name in (*classes, *(crop.path.name for crop in crops)):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TkError(
                "a folder or file name is not valid UTF-8",
                found=ascii(name),
                fix="rename it: convmv -f cp866 -t utf8 --notest -r FOLDER, for names of Windows",
            ) from None


def _of_folder(folder: Path, label: int) -> list[CropFile]:
    cutouts, masks = _by_stem(folder / "cutouts"), _by_stem(folder / "masks")
    cropped = folder / "cropped"
    found = []
    for path in _images(cropped if cropped.is_dir() else folder):
        stem = nfc(path.stem)
        names = [cutouts.get(f"{stem}_cutout"), cutouts.get(stem)]
        names += [masks.get(f"{stem}_mask"), masks.get(stem)]
        mask = next((name for name in names if name is not None), None)
        found.append(CropFile(path, label, photo_of(path), mask))
    return found


def photo_of(path: Path) -> str:
    """Name of the photo that a crop was cut from, as its file name has it; else its own stem."""
    stem = nfc(path.stem)
    match = _PHOTO.fullmatch(stem)
    return match[1] or match[2] if match else stem


def _by_stem(folder: Path) -> dict[str, Path]:
    return {nfc(path.stem): path for path in _images(folder)}


def _images(folder: Path) -> list[Path]:
    """Image files right in a folder, in the order of their NFC names."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.is_file() and _visible(path)]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    return sorted(images, key=lambda path: (nfc(path.stem), path.suffix, path.name))


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def read_picture(crop: CropFile) -> Picture:
    """Read a crop and its mask; a broken or empty mask file or one of another size counts as none.

    Raises:
        ImageError: the image is broken, or transparent everywhere.
    """
    if crop.mask is None:
        image, mask = read_reference(crop.path)
        if mask is not None and not mask.any():
            raise ImageError(f"{crop.path.name} is transparent everywhere")
        return Picture(image, mask)
    image, mask = read_image(crop.path), _read_mask(crop.mask)
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


def lacks_context(picture: Picture, spec: CropSpec) -> bool:
    """Say whether a crop file ends before the margin that the runtime cuts around its object."""
    if picture.mask is None or spec.background == "mask":
        return False
    height, width = picture.mask.shape
    box = BoxMask(0, 0, picture.mask, height, width).tight_box()
    if box is None:
        return False
    x0, y0, x1, y1 = enlarge(box[None], spec.margin)[0]
    return bool(x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1)


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
