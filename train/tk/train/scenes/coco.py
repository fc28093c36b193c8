"""Annotated scenes from a COCO file: what the detector and the segmenter are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.masks import decode_coco


@dataclass(frozen=True, eq=False)
class Thing:
    """One annotated object.

    Attributes:
        label: index of its class.
        box: (4,) float32 xyxy, image pixels.
        segmentation: COCO's run lengths or polygons; None when only the box is known.
    """

    label: int
    box: NDArray[np.float32]
    segmentation: Any = None


@dataclass(frozen=True, eq=False)
class Scene:
    """One image file and its objects; `height` and `width` as the annotations give them."""

    path: Path
    height: int
    width: int
    things: tuple[Thing, ...]


@dataclass(frozen=True, eq=False)
class Scenes:
    """A data set: class names and scenes, in the order of the file."""

    classes: tuple[str, ...]
    scenes: tuple[Scene, ...]


def read_scenes(data: Path, single_class: str = "") -> Scenes:
    """Read a COCO file; crowds and objects without a size are left out.

    Args:
        data: folder with `annotations.json`, or the JSON file itself; images lie in `images/`
            beside it, or beside it.
        single_class: when given, every category becomes this one class.

    Raises:
        TkError: missing file, not COCO, no images.
    """
    file = data / "annotations.json" if data.is_dir() else data
    content = read_json(file)
    try:
        categories = sorted(content["categories"], key=lambda item: int(item["id"]))
        images = [(item["id"], *_image(item)) for item in content["images"]]
        order = {int(item["id"]): index for index, item in enumerate(categories)}
        names = tuple(str(item["name"]) for item in categories)
        things = _things(content["annotations"], order, bool(single_class))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TkError(
            f"{file} is not a COCO annotation file",
            expected="images, annotations and categories as COCO defines them",
            found=f"{type(error).__name__}: {error}",
        ) from None
    if not images:
        raise TkError(f"{file} lists no images")
    folder = file.parent / "images"
    folder = folder if folder.is_dir() else file.parent
    scenes = tuple(
        Scene(folder / name, height, width, tuple(things.get(identity, ())))
        for identity, name, height, width in images
    )
    return Scenes((single_class,) if single_class else names, scenes)


def _image(item: dict[str, Any]) -> tuple[str, int, int]:
    name = str(item["file_name"])
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"file_name {name!r} leaves the folder")
    return name, int(item["height"]), int(item["width"])


def _things(
    annotations: Sequence[dict[str, Any]], order: dict[int, int], single: bool
) -> dict[Any, list[Thing]]:
    found: dict[Any, list[Thing]] = {}
    for item in annotations:
        x, y, w, h = (float(value) for value in item["bbox"])
        if item.get("iscrowd") or not (w > 0 and h > 0):
            continue
        label = 0 if single else order[int(item["category_id"])]
        box = np.array([x, y, x + w, y + h], np.float32)
        thing = Thing(label, box, item.get("segmentation") or None)
        found.setdefault(item["image_id"], []).append(thing)
    return found


def mask_of(thing: Thing, height: int, width: int) -> NDArray[np.bool_] | None:
    """Fill the mask of an object in its whole image.

    Returns:
        (height, width) bool; None when there is only a box.

    Raises:
        TkError: run lengths that do not fit the image.
    """
    shape = thing.segmentation
    if shape is None:
        return None
    if isinstance(shape, dict):
        mask = decode_coco(shape)
        if mask.shape != (height, width):
            raise TkError(
                "a mask is not of the size of its image",
                expected=f"{height}x{width}",
                found=f"{mask.shape[0]}x{mask.shape[1]}",
            )
        return mask
    try:
        parts = [[float(v) for v in part] for part in shape if len(part) >= 6]
    except (TypeError, ValueError):
        raise TkError("a polygon is not a list of numbers", found=f"{shape!r:.80}") from None
    parts = [part for part in parts if len(part) % 2 == 0]
    if not parts:
        return None
    runs = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return np.asarray(coco_mask.decode(runs), bool)


def outline(mask: NDArray[np.bool_] | None, box: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convex outline whose bounds stay tight under any rotation.

    Args:
        mask: (H, W) bool, or None: then the corners of the box.
        box: (4,) float32 xyxy, pixels.

    Returns:
        (P, 2) float32, corners in pixel-edge coordinates.
    """
    x0, y0, x1, y1 = box
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
    if mask is None:
        return corners
    points = cv2.findNonZero(mask.astype(np.uint8))
    if points is None:
        return corners
    hull = cv2.convexHull(points)[:, 0].astype(np.float32)
    # The hull of pixel centres, grown by half a pixel to every side.
    offsets = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    grown = cv2.convexHull((hull[:, None] + offsets).reshape(-1, 2))
    return np.asarray(grown[:, 0], np.float32)


def split(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split 0..count-1 into training and held-out indices, both ascending.

    At least one is held out when `share` is above 0 and there are two or more.
    """
    order = np.random.default_rng((seed, 2)).permutation(count)
    held = min(max(round(count * share), int(share > 0)), count - 1) if count > 1 else 0
    return np.sort(order[held:]).astype(np.int64), np.sort(order[:held]).astype(np.int64)
