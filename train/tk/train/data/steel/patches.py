"""Square patches round defects, by class: what classifiers are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, refuse_existing, refuse_inputs, write_json
from tk.runtime.images import ImageError, read_image
from tk.runtime.preprocess import Image
from tk.runtime.progress import progress
from tk.train.data.parallel import in_order
from tk.train.data.steel.background import first_lit, plan_background
from tk.train.data.steel.extraction import draw_extraction
from tk.train.data.steel.layout import BACKGROUND, CLASSES, class_folder
from tk.train.data.steel.prepared import PICTURES, Box, DefectImage, read_prepared
from tk.train.data.steel.windows import choose_defects, square_window

PATCH_INDEX = "patches.json"

DRAWN = ".extraction"
"""Folder of the pictures of what was cut: hidden, so that nothing takes them for patches."""


@dataclass(frozen=True)
class Cut:
    """One patch: its class folder, the box of its defect (None without one), the square cut out."""

    folder: str
    box: Box | None
    window: Box


@dataclass
class PatchSummary:
    """What was cut out.

    Attributes:
        counts: class folder -> patches.
        images: images that patches come from.
        left_out: defects beyond `max_per_image`.
        unreadable: image -> why.
    """

    counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    left_out: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def weights(self) -> dict[str, float]:
        """Weight of each class in a loss that counts all classes alike; their patches' mean is 1.

        The n / (k n_c) of scikit-learn's `class_weight="balanced"`.
        """
        total, kinds = sum(self.counts.values()), len(self.counts)
        return {name: total / (kinds * count) for name, count in self.counts.items()}

    def imbalance(self) -> float:
        """Patches of the largest class for one of the smallest."""
        return max(self.counts.values()) / min(self.counts.values())


@dataclass(frozen=True)
class _Item:
    image: DefectImage
    cuts: tuple[Cut, ...]
    places: tuple[tuple[Box, ...], ...]
    drawn: bool


@dataclass(frozen=True)
class _Done:
    name: str
    rows: tuple[dict[str, Any], ...] = ()
    error: str = ""


def cut_patches(
    prepared: Path,
    out: Path,
    *,
    target: int = 224,
    context: float = 0.2,
    max_per_image: int = 5,
    background: int = 0,
    seed: int = 0,
    pictures: int = 8,
    workers: int = 1,
    overwrite: bool = False,
) -> PatchSummary:
    """Cut a square round each defect and write `<class>/cropped/<image>_patch_<k>.png`.

    `out` is what `tk train embedder` reads, and its split keeps the patches of an image together.
    `patches.json` names the image, the box and the square of each patch.

    Args:
        prepared: folder that `prepare_severstal` made.
        out: the folder to make; it appears only when it is whole.
        target: side of the patches, pixels, 8..2048.
        context: what is seen round a defect, as a share of its longer side, 0..10.
        max_per_image: patches of one image at most, the largest of each class in turn.
        background: patches of images without a defect, a class of their own; 0 for none.
        seed: of the choice of those.
        pictures: how many extraction pictures to draw, `.extraction/<image>_extraction.jpg`; 0 for
            none.
        workers: processes; they do not change what is written.
        overwrite: replace `out` where it exists and is not empty.

    Raises:
        TkError: an argument is out of range, `prepared` is not such a folder or has no defects or
            lost its images, or `out` is not empty and `overwrite` is false.
    """
    _check(target, context, max_per_image, background)
    refuse_inputs(out, {"PREPARED": prepared, "PREPARED/images": prepared / PICTURES})
    refuse_existing(out, overwrite=overwrite, own=PATCH_INDEX)
    images = read_prepared(prepared)
    source = _source(prepared)
    summary = PatchSummary()
    items = _plan(images, context, max_per_image, (background, seed), pictures)
    chosen = sum(len(item.cuts) for item in items)
    summary.left_out = sum(len(image.defects) for image in images) - chosen
    rows: list[dict[str, Any]] = []
    with atomic_folder(out, overwrite=overwrite, own=PATCH_INDEX) as folder:
        job = partial(_cut_image, source, folder, target)
        with progress("strips", len(items)) as bar, in_order(job, items, workers) as results:
            for done in results:
                bar.advance(note=done.name)
                rows += done.rows
                summary.images += bool(done.rows)
                if done.error:
                    summary.unreadable[done.name] = done.error
        summary.counts = dict(sorted(Counter(row["class"] for row in rows).items()))
        if not summary.counts:
            why = next(iter(summary.unreadable.values()))
            raise TkError(f"no image of {prepared} can be read", found=why)
        settings = {
            "target": target,
            "context": context,
            "max_per_image": max_per_image,
            "background": background,
            "seed": seed,
        }
        write_json(folder / PATCH_INDEX, _index(settings, summary, rows))
    return summary


def _check(target: int, context: float, max_per_image: int, background: int) -> None:
    for name, value, low, high in (
        ("--target", target, 8, 2048),
        ("--context", context, 0, 10),
        ("--max-per-image", max_per_image, 1, 10_000),
        ("--background", background, 0, 10_000_000),
    ):
        if not low <= value <= high:
            raise TkError(f"{name} is out of range", expected=f"{low}..{high}", found=str(value))


def _source(prepared: Path) -> Path:
    folder = prepared / PICTURES
    if not folder.is_dir():
        where = f"it points to {folder.readlink()}" if folder.is_symlink() else "nothing"
        raise TkError(
            f"{folder} does not lead to the images",
            expected="the link that tk data severstal made",
            found=where,
            fix="run tk data severstal again, or make the link anew, if the data were moved",
        )
    return folder


def _plan(
    images: Sequence[DefectImage],
    context: float,
    most: int,
    background: tuple[int, int],
    pictures: int,
) -> list[_Item]:
    """What to cut out of which image; `background` is the number of such patches and their seed."""
    _check_stems(images)
    cuts = {image.name: _cuts(image, context, most) for image in images}
    sides = [cut.window[2] - cut.window[0] for found in cuts.values() for cut in found]
    if not sides:
        raise TkError(
            "there are no defects to cut out",
            found=f"{len(images)} images, none with a box",
            fix="a smaller --min-contour-area or --min-box in tk data severstal",
        )
    places = plan_background(images, sides, background[0], most, background[1])
    defective = [image.name for image in images if cuts[image.name]]
    at = np.linspace(0, len(defective), min(pictures, len(defective)), endpoint=False)
    drawn = {defective[int(i)] for i in at}
    return [
        _Item(
            image,
            cuts[image.name],
            tuple(tuple(tries) for tries in places.get(image.name, ())),
            image.name in drawn,
        )
        for image in images
        if cuts[image.name] or image.name in places
    ]


def _check_stems(images: Sequence[DefectImage]) -> None:
    """Refuse `a.jpg` beside `a.png`: their patches would have the same names."""
    stems = Counter(Path(image.name).stem for image in images)
    twice = [stem for stem, number in stems.items() if number > 1]
    if twice:
        raise TkError("two images have the same name but for the extension", found=twice[0])


def _cuts(image: DefectImage, context: float, most: int) -> tuple[Cut, ...]:
    return tuple(
        Cut(
            class_folder(defect.class_id),
            defect.box,
            square_window(defect.box, image.width, image.height, context),
        )
        for defect in choose_defects(image.defects, most)
    )


def _cut_image(source: Path, out: Path, target: int, item: _Item) -> _Done:
    name = item.image.name
    try:
        image = read_image(source / name)
    except ImageError as error:
        return _Done(name, error=error.what)
    if image.shape[:2] != (item.image.height, item.image.width):
        found = f"{image.shape[1]}x{image.shape[0]} pixels"
        return _Done(name, error=f"{name} was {item.image.width}x{item.image.height}, is {found}")
    spots = [first_lit(image, tries) for tries in item.places]
    cuts = [*item.cuts, *(Cut(BACKGROUND, None, spot) for spot in spots if spot is not None)]
    patches = [_cut(image, cut.window, target) for cut in cuts]
    rows = []
    for number, (cut, patch) in enumerate(zip(cuts, patches, strict=True), start=1):
        file = Path(cut.folder, "cropped", f"{Path(name).stem}_patch_{number}.png")
        _write_png(out / file, patch)
        box = {"box_xyxy": cut.box, "window_xyxy": cut.window}
        rows.append({"file": file.as_posix(), "class": cut.folder, "image": name, **box})
    if item.drawn:
        picture = draw_extraction(image, [(c.folder, c.box, c.window) for c in cuts], patches)
        stem = Path(name).stem
        _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        path = out / DRAWN / f"{stem}_extraction.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.tobytes())
    return _Done(name, tuple(rows))


def _cut(image: Image, window: Box, target: int) -> Image:
    x0, y0, x1, y1 = window
    way = cv2.INTER_AREA if x1 - x0 > target else cv2.INTER_CUBIC
    patch = cv2.resize(image[y0:y1, x0:x1], (target, target), interpolation=way)
    return np.asarray(patch, np.uint8)


def _write_png(path: Path, patch: Image) -> None:
    """Write a patch; with equal channels, as steel has them, as grey: a third of the bytes."""
    grey = (patch[..., :1] == patch).all()
    pixels = patch[..., 0] if grey else cv2.cvtColor(patch, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _index(
    settings: dict[str, Any], summary: PatchSummary, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    words = {class_folder(kind): word for kind, word in CLASSES.items()}
    return {
        "classes": {name: words.get(name, "no defect") for name in summary.counts},
        "settings": settings,
        "counts": summary.counts,
        "balanced_weights": summary.weights(),
        "left_out": summary.left_out,
        "unreadable": summary.unreadable,
        "patches": rows,
    }
