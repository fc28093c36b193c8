"""From Severstal's masks to boxes: `defects.json`, COCO's `annotations.json`, some pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tk.runtime.draw import Drawn, class_colors, draw_detections
from tk.runtime.errors import TkError
from tk.runtime.files import atomic_folder, refuse_existing, refuse_inputs, write_json
from tk.runtime.images import ImageError, find_images, read_image, relative_name, write_jpeg
from tk.runtime.masks import BoxMask, coco_rle
from tk.runtime.preprocess import Image
from tk.runtime.progress import progress
from tk.train.data.parallel import in_order
from tk.train.data.steel.boxes import Limits, Region, find_regions
from tk.train.data.steel.layout import CLASSES, IMAGES, TABLE, class_label
from tk.train.data.steel.prepared import (
    INDEX,
    PICTURES,
    Defect,
    DefectImage,
    counts_by_class,
    index_entry,
)
from tk.train.data.steel.runs import decode_column_runs
from tk.train.data.steel.table import Row, read_table

_NAMED = 5
"""Files that an error names; of the others it gives the number."""


@dataclass
class PrepareSummary:
    """What was found.

    Attributes:
        images: the readable ones.
        counts: ClassId -> boxes, images.
        unreadable: image -> why, for files that are no picture.
        missing: images of the table without a file, left out by `skip_missing`.
        small: parts of masks too small for a box.
        empty: rows of the table without a pixel.
        repeated: rows of the table that say once more what another says.
    """

    images: int = 0
    counts: dict[int, dict[str, int]] = field(default_factory=dict)
    without: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    small: int = 0
    empty: int = 0
    repeated: int = 0


@dataclass(frozen=True)
class _Item:
    name: str
    rows: tuple[Row, ...]
    drawn: bool


@dataclass(frozen=True)
class _Done:
    image: DefectImage
    annotations: list[dict[str, Any]]
    error: str = ""


def prepare_severstal(
    data: Path,
    out: Path,
    *,
    min_contour_area: float = 32,
    min_box: int = 8,
    pictures: int = 12,
    skip_missing: bool = False,
    workers: int = 1,
    overwrite: bool = False,
) -> PrepareSummary:
    """Turn `train.csv` and `train_images/` into boxes per class of defect.

    `out` gets `defects.json`, `annotations.json` (COCO, a box and a mask for every defect),
    `images` (a link to the images, so that `out` is what `tk train detector` reads) and
    `pictures/`.

    Args:
        data: folder in Severstal's layout.
        out: the folder to make; it appears only when it is whole.
        min_contour_area: see `Limits`.
        min_box: see `Limits`.
        pictures: how many annotated pictures to draw, every class in turn; 0 for none.
        skip_missing: leave out rows whose image is not there, instead of an error.
        workers: processes; they do not change what is written.
        overwrite: replace `out` where it exists and is not empty.

    Raises:
        TkError: a table that cannot be right (see `read_table`, `decode_column_runs`), images that
            are missing or all unreadable, or `out` is not empty and `overwrite` is false.
    """
    refuse_inputs(out, {"DATA": data, f"DATA/{IMAGES}": data / IMAGES})
    refuse_existing(out, overwrite=overwrite, own=INDEX)
    table = read_table(data / TABLE)
    names = _image_names(data / IMAGES)
    missing = sorted(table.rows.keys() - set(names))
    if missing and not skip_missing:
        raise _missing(missing, data / IMAGES)
    drawn = _sample(table.rows, set(names), pictures)
    items = [_Item(name, tuple(table.rows.get(name, ())), name in drawn) for name in names]
    limits = Limits(min_contour_area, min_box)
    summary = PrepareSummary(missing=missing, empty=table.empty, repeated=table.repeated)
    images: list[DefectImage] = []
    annotations: list[dict[str, Any]] = []
    with atomic_folder(out, overwrite=overwrite, own=INDEX) as folder:
        (folder / PICTURES).symlink_to(_relative(data / IMAGES, out), target_is_directory=True)
        job = partial(_prepare_image, data / IMAGES, folder / "pictures", limits)
        with progress("strips", len(items)) as bar, in_order(job, items, workers) as results:
            for done in results:
                bar.advance(note=done.image.name)
                if done.error:
                    summary.unreadable[done.image.name] = done.error
                    continue
                images.append(done.image)
                annotations += [{**item, "image_id": len(images)} for item in done.annotations]
        _summarise(summary, images, data / IMAGES)
        write_json(folder / INDEX, _index(summary, limits, images))
        write_json(folder / "annotations.json", _coco(images, annotations))
    return summary


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise TkError(
            f"{folder} does not exist",
            expected="train.csv and train_images/, as the competition packs them",
            fix="tk data download DATA, or tk data synth DATA --kind steel",
        )
    names = [relative_name(path, folder) for path in find_images(folder)]
    return [name for name in names if "/" not in name]


def _missing(missing: Sequence[str], folder: Path) -> TkError:
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return TkError(
        f"{len(missing)} images of {TABLE} are not in {folder}",
        found="missing: " + ", ".join(missing[:_NAMED]) + more,
        fix="unpack the archive again, or leave them out with --skip-missing",
    )


def _sample(rows: Mapping[str, Sequence[Row]], present: set[str], count: int) -> set[str]:
    """Images to draw: of every class in turn, evenly over their names."""
    chosen: list[str] = []
    for place, kind in enumerate(CLASSES):
        quota = count // len(CLASSES) + (place < count % len(CLASSES))
        having = sorted(
            name
            for name, found in rows.items()
            if name in present and name not in chosen and any(r.class_id == kind for r in found)
        )
        at = np.linspace(0, len(having), min(quota, len(having)), endpoint=False)
        chosen += [having[int(i)] for i in at]
    return set(chosen)


def _relative(images: Path, out: Path) -> str:
    return os.path.relpath(images.resolve(), out.resolve())


def _prepare_image(folder: Path, pictures: Path, limits: Limits, item: _Item) -> _Done:
    try:
        image = read_image(folder / item.name)
    except ImageError as error:
        return _Done(DefectImage(item.name, 0, 0), [], error.what)
    height, width = image.shape[:2]
    found: list[tuple[int, Region]] = []
    small = 0
    for row in item.rows:
        where = f"{TABLE}, line {row.number}, image {item.name}, class {row.class_id}"
        mask = decode_column_runs(row.text, height, width, where)
        regions, dropped = find_regions(mask, limits)
        found += [(row.class_id, region) for region in regions]
        small += dropped
    defects = tuple(Defect(kind, region.box, region.area) for kind, region in found)
    if item.drawn:
        stem = Path(item.name).stem
        write_jpeg(pictures / f"{stem}_annotated.jpg", _draw(image, found))
    done = DefectImage(item.name, width, height, defects, small)
    return _Done(done, [_annotation(kind, region, height, width) for kind, region in found])


def _draw(image: Image, found: Iterable[tuple[int, Region]]) -> Image:
    labels = [class_label(kind) for kind in CLASSES]
    drawn = [
        Drawn(
            np.asarray(region.box, np.float32),
            class_label(kind),
            class_label(kind),
            (*region.box[:2], region.pixels),
        )
        for kind, region in found
    ]
    return draw_detections(image, drawn, colors=class_colors(labels))


def _annotation(kind: int, region: Region, height: int, width: int) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    return {
        "category_id": kind,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": region.area,
        "iscrowd": 0,
        "segmentation": coco_rle(BoxMask(x0, y0, region.pixels, height, width)),
    }


def _summarise(summary: PrepareSummary, images: Sequence[DefectImage], folder: Path) -> None:
    if not images:
        name, why = next(iter(summary.unreadable.items()), ("", "no images"))
        raise TkError(f"no image in {folder} can be read", found=f"{name}: {why}".strip(": "))
    summary.images = len(images)
    summary.counts = counts_by_class(images)
    summary.without = sum(not image.defects and not image.small for image in images)
    summary.small = sum(image.small for image in images)


def _index(
    summary: PrepareSummary, limits: Limits, images: Sequence[DefectImage]
) -> dict[str, Any]:
    return {
        "classes": {str(kind): name for kind, name in CLASSES.items()},
        "settings": {
            "min_contour_area": limits.min_contour_area,
            "min_box": limits.min_box,
        },
        "counts": {str(kind): found for kind, found in summary.counts.items()},
        "without_defect": summary.without,
        "too_small": summary.small,
        "empty_rows": summary.empty,
        "repeated_rows": summary.repeated,
        "missing": summary.missing,
        "unreadable": summary.unreadable,
        "images": [index_entry(image) for image in images],
    }


def _coco(images: Sequence[DefectImage], annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": "steel defects, one annotation per connected part of a mask"},
        "licenses": [],
        "images": [
            {"id": number, "file_name": image.name, "width": image.width, "height": image.height}
            for number, image in enumerate(images, start=1)
        ],
        "categories": [{"id": kind, "name": name} for kind, name in CLASSES.items()],
        "annotations": [{"id": n, **item} for n, item in enumerate(annotations, start=1)],
    }
