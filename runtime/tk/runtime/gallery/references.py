"""Reference pictures: which files belong to which class, their masks, and how they are cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.images import EXTENSIONS, find_images, read_image, read_reference
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, cut_crop
from tk.runtime.progress import progress

BATCH = 64
MASK_FOLDERS = ("cutouts", "masks")
GIVEN, BY_SEGMENTER = "given", "by the segmenter"
"""Where the masks of references come from, as the facts of a gallery state it."""


@dataclass(frozen=True)
class Reference:
    """One reference picture of a class; `mask_file` (cutout or mask) is None without one."""

    class_name: str
    file: Path
    mask_file: Path | None


def find_references(folder: Path) -> list[Reference]:
    """List reference pictures, with the masks that training would take.

    `FOLDER/<class>/cropped/*`, else `FOLDER/<class>/*`, with optional RGBA cutouts
    `<class>/cutouts/{stem}_cutout.png` or `{stem}.png` (their alpha channel is the mask) or masks
    `<class>/masks/{stem}_mask.png` or `{stem}.png`; cutouts win. A folder without sub-folders has
    one picture per class, named by the file (`Plier.png`).

    Raises:
        TkError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise TkError(f"{folder} is not a folder of references")
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and _visible(child))
    if not classes:
        return [Reference(_nfc(file.stem), file, None) for file in find_images(folder)]
    found: list[Reference] = []
    for child in classes:
        crops, masks = child / "cropped", _Masks(child)
        for file in find_images(crops if crops.is_dir() else child):
            if file.parent.name not in MASK_FOLDERS:
                found.append(Reference(_nfc(child.name), file, masks.of(file)))
    return found


def single_reference(file: Path) -> Reference:
    """One picture, with the mask that lies beside it if it is in a folder of references."""
    folder = file.parent.parent if file.parent.name == "cropped" else file.parent
    return Reference(_nfc(folder.name), file, _Masks(folder).of(file))


class _Masks:
    """Mask files of a class folder, by stem (NFC: macOS stores names decomposed)."""

    def __init__(self, folder: Path) -> None:
        self.cutouts, self.masks = (_by_stem(folder / name) for name in MASK_FOLDERS)

    def of(self, file: Path) -> Path | None:
        """The file that says where the object is in a picture: a cutout, else a mask."""
        stem = _nfc(file.stem)
        names = [self.cutouts.get(f"{stem}_cutout"), self.cutouts.get(stem)]
        names += [self.masks.get(f"{stem}_mask"), self.masks.get(stem)]
        return next((name for name in names if name is not None), None)


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = (path for path in folder.iterdir() if path.is_file() and _visible(path))
    return {_nfc(path.stem): path for path in sorted(files) if path.suffix.lower() in EXTENSIONS}


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def reference_crop(
    reference: Reference, spec: CropSpec, segmenter: Segmenter | None = None
) -> Image:
    """Read a reference and cut it as the runtime cuts an object.

    With a mask (cutout, mask file, else the picture's own alpha channel) the crop is the tight box
    of the mask and its margin, exactly as the annotator does it; without one the whole picture is
    the crop. A segmenter cuts the object out once more, from the tight box of that mask: then
    references have the same flaws as the annotator's masks, and prototypes and thresholds hold for
    what it really sees.

    Raises:
        TkError: the picture is unreadable, the mask does not fit, or one is needed and missing.
    """
    image, mask = _read(reference)
    if mask is None and spec.background == "mask":
        raise TkError(
            f"reference {reference.file.name} has no mask",
            expected="an alpha channel, cutouts/{stem}_cutout.png or masks/{stem}_mask.png: "
            "the embedder sees masked crops",
        )
    if mask is None:
        return image
    height, width = image.shape[:2]
    if mask.shape != (height, width):
        raise TkError(
            f"the mask of reference {reference.file.name} has another size",
            expected=f"{width}x{height}",
            found=f"{mask.shape[1]}x{mask.shape[0]}",
        )
    region = BoxMask(0, 0, mask, height, width)
    box = region.tight_box()
    if box is not None and segmenter is not None:
        region = segmenter.segment([image], [box[None]])[0].masks[0]
        box = region.tight_box()
    if box is None:
        raise TkError(f"the mask of reference {reference.file.name} is empty")
    return cut_crop(image, box, spec, region)


def _read(reference: Reference) -> tuple[Image, NDArray[np.bool_] | None]:
    if reference.mask_file is None:
        return read_reference(reference.file)
    grey, alpha = read_reference(reference.mask_file)
    return read_image(reference.file), grey[..., 0] > 127 if alpha is None else alpha


@dataclass(frozen=True)
class Embedded:
    """References as vectors.

    Attributes:
        rows: (N, D) float32, unit length.
        kept: the N references that could be used.
        skipped: one sentence for each of the others.
    """

    rows: NDArray[np.float32]
    kept: tuple[Reference, ...]
    skipped: tuple[str, ...]


def embed_references(
    references: Sequence[Reference], embedder: Embedder, segmenter: Segmenter | None = None
) -> Embedded:
    """Cut out and embed references; see `reference_crop`."""
    rows: list[NDArray[np.float32]] = [np.zeros((0, embedder.dimension), np.float32)]
    kept: list[Reference] = []
    skipped: list[str] = []
    with progress("references", len(references)) as bar:
        for start in range(0, len(references), BATCH):
            chunk = references[start : start + BATCH]
            crops = []
            for reference in chunk:
                try:
                    crops.append(reference_crop(reference, embedder.crop, segmenter))
                    kept.append(reference)
                except TkError as error:
                    skipped.append(error.what)
            rows.append(embedder.embed(crops))
            bar.advance(len(chunk))
    return Embedded(np.concatenate(rows), tuple(kept), tuple(skipped))
