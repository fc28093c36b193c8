"""A folder of generated tool scenes: photos, COCO annotations, crops with masks by class."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as rle

from tk.runtime.files import atomic_folder
from tk.runtime.progress import progress
from tk.train.data.parallel import check_counts, in_order
from tk.train.data.synth.scene import CLASSES, Scene, check_size, render_scene

MARGIN = 0.1
"""A crop is the box and this part of the box's longer side all round."""
_CROP_QUALITY = 95


@dataclass(frozen=True)
class SynthSummary:
    """What was written: scenes, tools in them, tools of each class."""

    images: int
    objects: int
    per_class: dict[str, int]


def write_tools_dataset(
    out: Path,
    *,
    images: int,
    size: int,
    seed: int,
    workers: int = 1,
    overwrite: bool = False,
) -> SynthSummary:
    """Render scenes of hand tools into a folder that appears only when it is whole.

    `out` gets `images/`, `annotations.json` (COCO, RLE masks) and `crops/<class>/{cropped,masks}/`.
    The files depend on `images`, `size` and `seed` alone, not on `workers`.

    Args:
        out: the folder to make.
        images: number of scenes, 1 or more.
        size: long side of a scene in pixels, 256..4000.
        seed: of every random choice, 0 or greater.
        workers: processes that render.
        overwrite: replace `out` where it exists and is not empty.

    Raises:
        TkError: an argument is out of range, or `out` is not empty and `overwrite` is false.
    """
    check_counts(images=images, seed=seed, workers=workers)
    check_size(size)
    with atomic_folder(out, overwrite=overwrite, own="images/scene_00000.jpg") as folder:
        _make_folders(folder)
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        job = partial(_write_scene, folder, seed, size)
        with progress("scenes", images) as bar, in_order(job, range(images), workers) as scenes:
            for entry, found in scenes:
                entries.append(entry)
                for annotation in found:
                    annotations.append({"id": len(annotations) + 1, **annotation})
                bar.advance()
        coco = {
            "info": {
                "description": "generated hand tools",
                "kind": "tools",
                "seed": seed,
                "size": size,
            },
            "licenses": [],
            "images": entries,
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
            "annotations": annotations,
        }
        (folder / "annotations.json").write_bytes(orjson.dumps(coco))
    counts = Counter(a["category_id"] for a in annotations)
    per_class = {name: counts[i] for i, name in enumerate(CLASSES, start=1)}
    return SynthSummary(images, len(annotations), per_class)


def crop_window(box: NDArray[np.float32], width: int, height: int) -> tuple[int, int, int, int]:
    """The xyxy pixels of a crop: the box, a margin all round, cut at the image's edges.

    Args:
        box: (4,) float32, xyxy, whole pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    margin = math.ceil(MARGIN * max(x1 - x0, y1 - y0))  # no less than the annotator cuts
    return (
        max(0, x0 - margin),
        max(0, y0 - margin),
        min(width, x1 + margin),
        min(height, y1 + margin),
    )


def _make_folders(folder: Path) -> None:
    (folder / "images").mkdir()
    for name in CLASSES:
        for kind in ("cropped", "masks"):
            (folder / "crops" / name / kind).mkdir(parents=True)


Written = tuple[dict[str, Any], list[dict[str, Any]]]


def _write_scene(folder: Path, seed: int, size: int, index: int) -> Written:
    """Render and write one scene; its COCO image and its annotations, ids yet to be given."""
    scene = render_scene(seed, index, size)
    height, width = scene.labels.shape
    stem = f"scene_{index:05d}"
    (folder / "images" / f"{stem}.jpg").write_bytes(scene.jpeg)
    entry = {"id": index + 1, "file_name": f"{stem}.jpg", "width": width, "height": height}
    found = []
    for number, name in enumerate(scene.classes):
        window = crop_window(scene.boxes[number], width, height)
        _write_crop(folder / "crops" / name, f"{stem}_{number:02d}", scene, number, window)
        found.append({"image_id": index + 1, **_annotation(scene, number)})
    return entry, found


def _annotation(scene: Scene, number: int) -> dict[str, Any]:
    mask = scene.mask(number)
    x0, y0, x1, y1 = scene.boxes[number].tolist()
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": CLASSES.index(scene.classes[number]) + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(np.count_nonzero(mask)),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
    }


def _write_crop(
    folder: Path, stem: str, scene: Scene, number: int, window: tuple[int, int, int, int]
) -> None:
    x0, y0, x1, y1 = window
    crop = cv2.cvtColor(scene.image[y0:y1, x0:x1], cv2.COLOR_RGB2BGR)
    mask = (scene.labels[y0:y1, x0:x1] == number + 1).astype(np.uint8) * 255
    quality = [cv2.IMWRITE_JPEG_QUALITY, _CROP_QUALITY]
    for path, image, extra in (
        (folder / "cropped" / f"{stem}.jpg", crop, quality),
        (folder / "masks" / f"{stem}_mask.png", mask, []),
    ):
        _, data = cv2.imencode(path.suffix, image, extra)
        path.write_bytes(data.tobytes())
