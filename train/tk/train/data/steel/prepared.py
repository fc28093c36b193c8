"""What `tk data severstal` leaves: `defects.json`, the boxes of every image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.train.data.steel.layout import CLASSES

INDEX, PICTURES = "defects.json", "images"
"""File of boxes and folder (a link) of images in a prepared folder."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Defect:
    """One defect: its class, its box (x0, y0, x1, y1) in whole pixels, half open, its pixels."""

    class_id: int
    box: Box
    area: int


@dataclass(frozen=True)
class DefectImage:
    """One image.

    Attributes:
        name: file name in the folder of images.
        width: pixels.
        height: pixels.
        defects: in the order of their classes; none for a good strip.
        small: parts of masks that were too small for a box; a strip with some is not a good one.
    """

    name: str
    width: int
    height: int
    defects: tuple[Defect, ...] = ()
    small: int = 0


def counts_by_class(images: Iterable[DefectImage]) -> dict[int, dict[str, int]]:
    """ClassId -> number of boxes and of images that have one."""
    boxes: Counter[int] = Counter()
    having: Counter[int] = Counter()
    for image in images:
        found = [defect.class_id for defect in image.defects]
        boxes.update(found)
        having.update(set(found))
    return {kind: {"boxes": boxes[kind], "images": having[kind]} for kind in CLASSES}


def index_entry(image: DefectImage) -> dict[str, Any]:
    """One image as it stands in `defects.json`."""
    defects = [{"class_id": d.class_id, "box_xyxy": d.box, "area": d.area} for d in image.defects]
    return {
        "image": image.name,
        "width": image.width,
        "height": image.height,
        "small": image.small,
        "defects": defects,
    }


def read_prepared(folder: Path) -> Sequence[DefectImage]:
    """Read `defects.json` of a prepared folder.

    Raises:
        TkError: it is missing, or not what `tk data severstal` writes.
    """
    file = folder / INDEX
    if not file.is_file():
        raise TkError(
            f"{folder} holds no {INDEX}",
            expected="a folder made by tk data severstal",
            fix=f"tk data severstal DATA {folder}",
        )
    try:
        return [_image(entry) for entry in read_json(file)["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TkError(
            f"{file} is not an index of defects",
            expected="what tk data severstal writes",
            found=f"{type(error).__name__}: {error}",
        ) from None


def _image(entry: dict[str, Any]) -> DefectImage:
    name, width, height = str(entry["image"]), int(entry["width"]), int(entry["height"])
    if Path(name).name != name:
        raise ValueError(f"image {name!r} is not a file name")
    defects = []
    for item in entry["defects"]:
        x0, y0, x1, y1 = (int(value) for value in item["box_xyxy"])
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"a box of {name} leaves the image")
        if int(item["class_id"]) not in CLASSES:
            raise ValueError(f"class {item['class_id']} of {name}")
        defects.append(Defect(int(item["class_id"]), (x0, y0, x1, y1), int(item["area"])))
    return DefectImage(name, width, height, tuple(defects), int(entry["small"]))
