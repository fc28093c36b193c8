"""Build a gallery from reference pictures, and find its `unknown` threshold on held-out ones."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.runtime.gallery.gallery import Gallery
from tk.runtime.gallery.search import PrototypeSearch, SearchMode
from tk.runtime.heads.embedder import Embedder
from tk.runtime.heads.segmenter import Segmenter
from tk.runtime.images import find_images, read_reference
from tk.runtime.masks import BoxMask
from tk.runtime.preprocess import CropSpec, Image, cut_crop
from tk.runtime.progress import progress

MODES: tuple[SearchMode, ...] = ("centroid", "stack")
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """One reference picture of a class; `mask_file` is None when there is none beside it."""

    class_name: str
    file: Path
    mask_file: Path | None


def find_references(folder: Path) -> list[Reference]:
    """List reference pictures.

    `FOLDER/<class>/cropped/*`, else `FOLDER/<class>/*`, with optional masks
    `<class>/masks/{stem}_mask.png` or `{stem}.png`; a folder without sub-folders has one picture
    per class, named by the file (`Plier.png`).

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
        crops = child / "cropped"
        for file in find_images(crops if crops.is_dir() else child):
            if file.parent.name in ("masks", "cutouts"):
                continue
            found.append(Reference(_nfc(child.name), file, _mask_file(child / "masks", file.stem)))
    return found


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _mask_file(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}_mask.png", f"{stem}.png")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def reference_crop(
    reference: Reference, spec: CropSpec, segmenter: Segmenter | None = None
) -> Image:
    """Read a reference and cut it as the runtime cuts an object.

    With a mask (alpha channel or mask file) the crop is the tight box of the mask and its margin,
    exactly as the annotator does it; without one the whole picture is the crop. A segmenter cuts
    the object out once more, from the tight box of that mask: then references have the same flaws
    as the annotator's masks, and prototypes and thresholds hold for what it really sees.

    Raises:
        TkError: the picture is unreadable, the mask does not fit, or one is needed and missing.
    """
    image, mask = read_reference(reference.file)
    if mask is None and reference.mask_file is not None:
        mask = read_reference(reference.mask_file)[0][..., 0] > 127
    if mask is None and spec.background == "mask":
        raise TkError(
            f"reference {reference.file.name} has no mask",
            expected="an alpha channel or masks/{stem}_mask.png: the embedder sees masked crops",
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


@dataclass(frozen=True)
class BuildReport:
    """What building found.

    Attributes:
        references: pictures used.
        skipped: one sentence per picture that could not be used.
    """

    references: int
    skipped: tuple[str, ...]


def build_gallery(
    folder: Path,
    embedder: Embedder,
    segmenter: Segmenter | None = None,
    *,
    false_rejections: float = 0.02,
    seed: int = 0,
) -> tuple[Gallery, BuildReport]:
    """Embed references and make prototypes.

    Args:
        folder: see `find_references`.
        embedder: its CropSpec says how references are cut.
        segmenter: cuts references out as the annotator will; see `reference_crop`.
        false_rejections: share of true objects that the `unknown` threshold may turn away.
        seed: of the choice of held-out references.

    Raises:
        TkError: no usable reference at all, or a class without one.
    """
    references = find_references(folder)
    embeddings, kept, skipped = _embed(references, embedder, segmenter)
    classes = tuple(sorted({reference.class_name for reference in references}))
    labels = np.asarray([classes.index(reference.class_name) for reference in kept], np.int64)
    empty = [name for index, name in enumerate(classes) if not (labels == index).any()]
    if empty or not classes:
        raise TkError(
            f"no usable reference for {', '.join(empty) or 'any class'} in {folder}",
            found="; ".join(skipped[:5]) or "no pictures",
        )
    thresholds, facts = calibrate(embeddings, labels, classes, false_rejections, seed)
    gallery = Gallery(
        classes=classes,
        centroids=class_centroids(embeddings, labels, len(classes)),
        stacks=embeddings,
        stack_labels=labels,
        embedder_sha256=embedder.sha256,
        crop=embedder.crop,
        thresholds=thresholds,
        facts={
            "calibration": facts,
            "references": _count(labels, classes),
            "masks": "given" if segmenter is None else "by the segmenter",
        },
    )
    return gallery, BuildReport(len(kept), tuple(skipped))


def _embed(
    references: list[Reference], embedder: Embedder, segmenter: Segmenter | None
) -> tuple[NDArray[np.float32], list[Reference], list[str]]:
    rows: list[NDArray[np.float32]] = [np.zeros((0, embedder.dimension), np.float32)]
    kept: list[Reference] = []
    skipped: list[str] = []
    with progress("references", len(references)) as bar:
        for chunk in _chunks(references):
            crops = []
            for reference in chunk:
                try:
                    crops.append(reference_crop(reference, embedder.crop, segmenter))
                    kept.append(reference)
                except TkError as error:
                    skipped.append(error.what)
            rows.append(embedder.embed(crops))
            bar.advance(len(chunk))
    return np.concatenate(rows), kept, skipped


def _chunks(references: list[Reference]) -> Iterator[list[Reference]]:
    for start in range(0, len(references), BATCH):
        yield references[start : start + BATCH]


def class_centroids(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Mean of the unit vectors of each class, made unit length again: (C, D) float32."""
    means = np.stack([embeddings[labels == index].mean(axis=0) for index in range(count)])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(norms, 1e-12), np.float32)


def calibrate(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    false_rejections: float,
    seed: int,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Find the similarity below which an object is `unknown`, per search mode.

    A third of the references of each class is held out; prototypes come from the rest; the
    threshold is the quantile of the similarity between held-out references and their own class at
    the rate of false rejections that is allowed.

    Returns:
        Thresholds by mode, and the facts to state them with: held-out count, allowed rate, and
        the accuracy of the nearest class among the held-out references.
    """
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for index in range(len(classes)):
        members = random.permutation(np.flatnonzero(labels == index))
        held[members[: len(members) // 3]] = True
    facts: dict[str, Any] = {
        "method": "quantile of the similarity of held-out references to their own class",
        "false_rejections": false_rejections,
        "held_out": int(held.sum()),
    }
    if held.sum() < len(classes):
        facts["method"] = "none: fewer than three references per class, nothing is turned away"
        return {mode: -1.0 for mode in MODES}, facts
    rest = ~held
    part = Gallery(
        classes,
        class_centroids(embeddings[rest], labels[rest], len(classes)),
        embeddings[rest],
        labels[rest],
    )
    thresholds: dict[str, float] = {}
    for mode in MODES:
        similarity = PrototypeSearch(part, mode).similarity(embeddings[held])
        own = similarity[np.arange(len(similarity)), labels[held]]
        thresholds[mode] = float(np.quantile(own, false_rejections))
        accuracy = float((similarity.argmax(axis=1) == labels[held]).mean())
        facts[f"accuracy_{mode}"] = round(accuracy, 4)
    return thresholds, facts


def _count(labels: NDArray[np.int64], classes: tuple[str, ...]) -> dict[str, int]:
    return {name: int((labels == index).sum()) for index, name in enumerate(classes)}
