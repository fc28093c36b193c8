"""Records: what is said of one image, with the keys of `predictions.json`.

`predictions.schema.json` beside this file describes the format; added to the original keys are
`width`, `height`, `error` of an image and `margin`, `runner_up` of a detection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tk.runtime.errors import TkError
from tk.runtime.files import atomic_path, read_json
from tk.runtime.masks import BoxMask, checked_counts, checked_size, rle_row_major

UNKNOWN = "unknown"
"""The class of a detection that none of the gallery's classes fits."""


@dataclass(frozen=True)
class RankedClass:
    """A class of the gallery and how similar the detection is to it."""

    name: str
    score: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the file."""
        return {"name": _text(self.name), "score": _number(self.score)}


@dataclass(frozen=True, eq=False)
class Detection:
    """One object.

    Args:
        bbox_xyxy: tight box of the mask, half-open, pixels of the image.
        class_name: a class of the gallery, or "unknown".
        score_metric: similarity to the class.
        score_vlm: score of the detector.
        vlm_class: words of the prompt that the detector matched.
        ranked: classes of the gallery, most similar first.
        margin: similarity to the class minus that to the runner-up.
        runner_up: the most similar other class.
        mask: the object's pixels; None leaves `mask_rle` out of the file.
    """

    bbox_xyxy: tuple[int, int, int, int]
    class_name: str
    score_metric: float | None
    score_vlm: float | None
    vlm_class: str | None
    ranked: tuple[RankedClass, ...] = ()
    margin: float | None = None
    runner_up: str | None = None
    mask: BoxMask | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the file, in its order; what is not a finite number is null."""
        values: dict[str, Any] = {
            "bbox_xyxy": [int(edge) for edge in self.bbox_xyxy],
            "class": _text(self.class_name),
            "score_metric": _number(self.score_metric),
            "score_vlm": _number(self.score_vlm),
            "vlm_class": None if self.vlm_class is None else _text(self.vlm_class),
            "ranked": [one.to_json() for one in self.ranked],
            "margin": _number(self.margin),
            "runner_up": None if self.runner_up is None else _text(self.runner_up),
        }
        if self.mask is not None:
            size = [self.mask.height, self.mask.width]
            counts = rle_row_major(self.mask)
            values["mask_rle"] = {"size": size, "counts": counts, "order": "row-major"}
        return values


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image: its detections, or the error that kept it from having any.

    Args:
        image: path relative to the input folder, POSIX.
        width: pixels of the upright image; None when it could not be read.
        height: pixels of the upright image; None when it could not be read.
        detections: the objects found.
        error: why the image was not annotated.
    """

    image: str
    width: int | None
    height: int | None
    detections: tuple[Detection, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the file, in its order; `error` only when there is one."""
        values: dict[str, Any] = {
            "image": _text(self.image),
            "width": None if self.width is None else int(self.width),
            "height": None if self.height is None else int(self.height),
            "detections": [one.to_json() for one in self.detections],
        }
        if self.error is not None:
            values["error"] = _text(self.error)
        return values

    def to_line(self) -> bytes:
        """Return the record as one JSON line, without the newline."""
        return orjson.dumps(self.to_json())


def write_predictions(path: Path, lines: Iterable[bytes]) -> None:
    """Write `predictions.json` from JSON lines, one record each, holding one at a time in memory.

    The file is whole or absent. Blank lines are left out.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"[")
        separator = b"\n"
        for line in lines:
            if record := line.strip():
                file.write(separator + record)
                separator = b",\n"
        file.write(b"\n]\n")


def load_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a `predictions.json` and check its shape; keys that it does not know are kept.

    Raises:
        TkError: the file is not one; the message names image, detection and key.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise TkError(
            f"{path} is not a list of image records",
            expected="[{image, detections}, ...]",
            found=type(records).__name__,
        )
    for index, record in enumerate(records):
        name = record.get("image") if isinstance(record, dict) else None
        where = f"{path}, image {index}" + (f" ({name})" if isinstance(name, str) else "")
        _check(record, IMAGE_KEYS, where)
        for number, detection in enumerate(record["detections"]):
            _check_detection(detection, f"{where}, detection {number}")
    return records


def _check_detection(detection: Any, where: str) -> None:
    _check(detection, DETECTION_KEYS, where)
    for place, ranked in enumerate(detection["ranked"]):
        _check(ranked, RANKED_KEYS, f"{where}, ranked {place}")
    rle = detection.get("mask_rle")
    if rle is None:
        return
    _check(rle, MASK_KEYS, f"{where}, mask_rle")
    try:
        height, width = checked_size(rle["size"])
        checked_counts(rle["counts"], height * width)
    except TkError as error:
        text = f"{where}, mask_rle: {error.what}"
        raise TkError(text, expected=error.expected, found=error.found) from None


def _check(value: Any, keys: Mapping[str, tuple[str, str]], where: str) -> None:
    """Raise unless `value` is an object whose keys hold what `keys` says."""
    if not isinstance(value, dict):
        raise TkError(f"{where} is wrong", expected="an object", found=f"{value!r:.80}")
    for key, (presence, kind) in keys.items():
        if key not in value:
            if presence == "required":
                raise TkError(f"{where} lacks the key `{key}`", expected=kind)
        elif not KINDS[kind](value[key]):
            raise TkError(
                f"{where}, key `{key}` is wrong", expected=kind, found=f"{value[key]!r:.80}"
            )


def _whole(value: Any) -> bool:
    return type(value) is int  # a bool is an int too


def _pixels(value: Any) -> bool:
    return value is None or (_whole(value) and value >= 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_whole, value))


KINDS: dict[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "text or null": lambda value: value is None or _is_text(value),
    "a list": lambda value: isinstance(value, list),
    "an object": lambda value: isinstance(value, dict),
    "a number or null": _is_number,
    "pixels, at least 1, or null": _pixels,
    "four whole numbers": _is_box,
    '"row-major"': lambda value: value == "row-major",
}

IMAGE_KEYS = {
    "image": ("required", "text"),
    "width": ("optional", "pixels, at least 1, or null"),
    "height": ("optional", "pixels, at least 1, or null"),
    "detections": ("required", "a list"),
    "error": ("optional", "text"),
}
DETECTION_KEYS = {
    "bbox_xyxy": ("required", "four whole numbers"),
    "class": ("required", "text"),
    "score_metric": ("required", "a number or null"),
    "score_vlm": ("required", "a number or null"),
    "vlm_class": ("required", "text or null"),
    "ranked": ("required", "a list"),
    "margin": ("optional", "a number or null"),
    "runner_up": ("optional", "text or null"),
    "mask_rle": ("optional", "an object"),
}
RANKED_KEYS = {"name": ("required", "text"), "score": ("required", "a number or null")}
MASK_KEYS = {
    "size": ("required", "a list"),
    "counts": ("required", "a list"),
    "order": ("required", '"row-major"'),
}


def _number(value: float | None) -> float | None:
    """Six decimals are what a float32 holds; JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 6)


def _text(value: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a file name that are not UTF-8 are written as \udcXX."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
