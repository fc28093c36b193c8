"""From pictures to network input: the one letterbox and the one way to cut a crop.

Training's evaluation, export's gate, the runtime and the benchmarks all call these functions, so a
model sees the same pixels everywhere. What a model wants is written in its manifest as an
`ImageSpec` and, for models that look at crops, a `CropSpec`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.boxes import enlarge
from tk.runtime.errors import TkError
from tk.runtime.masks import BoxMask

Image = NDArray[np.uint8]
"""(H, W, 3) RGB."""

_Spec = TypeVar("_Spec", bound="ImageSpec | CropSpec")


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes a canvas of fixed size.

    Attributes:
        height, width: canvas size in pixels.
        mode: `letterbox` keeps the aspect ratio and pads; `stretch` does not.
        anchor: where a letterboxed picture lies: top-left `corner`, or `center`.
        interpolation: `area` (area average when shrinking, bilinear when growing) or `linear`.
        pad: grey value 0..255 of the padding.
    """

    height: int
    width: int
    mode: Literal["letterbox", "stretch"] = "letterbox"
    anchor: Literal["corner", "center"] = "corner"
    interpolation: Literal["area", "linear"] = "area"
    pad: int = 114

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise TkError("an ImageSpec needs a positive size", found=f"{self.height}x{self.width}")
        _check_choice("mode", self.mode, ("letterbox", "stretch"))
        _check_choice("anchor", self.anchor, ("corner", "center"))
        _check_choice("interpolation", self.interpolation, ("area", "linear"))


@dataclass(frozen=True)
class CropSpec:
    """How an object is cut out of a picture.

    Attributes:
        margin: what is added on each side, as a share of the box's longer side.
        background: `keep` it, or paint everything outside the `mask` in the fill colour.
        fill: RGB, 0..255.
    """

    margin: float = 0.1
    background: Literal["keep", "mask"] = "keep"
    fill: tuple[int, int, int] = (114, 114, 114)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fill", tuple(self.fill))  # JSON gives a list
        _check_choice("background", self.background, ("keep", "mask"))
        if not 0 <= self.margin <= 4:
            raise TkError("crop margin out of range", expected="0..4", found=str(self.margin))


def _check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise TkError(f"unknown {name}", expected=" or ".join(valid), found=repr(value))


def spec_from_json(kind: type[_Spec], value: dict[str, Any]) -> _Spec:
    """Rebuild a spec from `dataclasses.asdict`; unknown or missing keys are an error."""
    known = {field.name for field in fields(kind)}
    if set(value) != known:
        raise TkError(
            f"{kind.__name__} has other keys than this version of tk knows",
            expected=", ".join(sorted(known)),
            found=", ".join(sorted(value)),
            fix="export the model again, or update tk",
        )
    return kind(**value)


def spec_to_json(spec: ImageSpec | CropSpec) -> dict[str, Any]:
    """Plain dict of a spec, for manifests and checkpoints."""
    return asdict(spec)


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on its canvas: canvas = image * scale + offset (pixel edges).

    Attributes:
        scale: (x, y) factors from image to canvas pixels.
        offset: (x, y) of the picture's top-left corner on the canvas.
        valid_hw: (h, w) of the canvas area that is picture, not padding.
    """

    scale: tuple[float, float]
    offset: tuple[int, int]
    valid_hw: tuple[int, int]

    def to_canvas(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move `boxes: (N, 4) float32 xyxy` from image pixels to canvas pixels."""
        scale, offset = self._four()
        return (boxes * scale + offset).astype(np.float32)

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo the letterbox for `boxes: (N, 4) float32 xyxy` in canvas pixels.

        Masks come back the same way: a mask is drawn into the rectangle of the image that its
        logits cover, and that rectangle is a box (see `tk.runtime.masks.upsample_logits`).
        """
        scale, offset = self._four()
        return ((boxes - offset) / scale).astype(np.float32)

    def _four(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.tile(self.scale, 2).astype(np.float64), np.tile(self.offset, 2).astype(np.float64)


def place(spec: ImageSpec, height: int, width: int) -> Placement:
    """Say where a picture of `height` x `width` pixels lies on the canvas of `spec`."""
    if spec.mode == "stretch":
        return Placement(
            (spec.width / width, spec.height / height), (0, 0), (spec.height, spec.width)
        )
    scale = min(spec.width / width, spec.height / height)
    # An extreme aspect ratio (20000x1) must still be one pixel wide.
    w = min(spec.width, max(1, round(width * scale)))
    h = min(spec.height, max(1, round(height * scale)))
    offset = (0, 0)
    if spec.anchor == "center":
        offset = ((spec.width - w) // 2, (spec.height - h) // 2)
    return Placement((w / width, h / height), offset, (h, w))


def fit(spec: ImageSpec, image: Image) -> tuple[Image, Placement]:
    """Put a picture on the canvas of `spec`.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        canvas: (spec.height, spec.width, 3) uint8 RGB, and where the picture lies on it.
    """
    placement = place(spec, *image.shape[:2])
    h, w = placement.valid_hw
    resized = _resize(image, h, w, spec.interpolation)
    if (h, w) == (spec.height, spec.width):
        return resized, placement
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    x, y = placement.offset
    canvas[y : y + h, x : x + w] = resized
    return canvas, placement


def _resize(image: Image, height: int, width: int, interpolation: str) -> Image:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    # Area averaging in both directions is only defined for shrinking.
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if interpolation == "area" and shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def cut_crop(
    image: Image, box: NDArray[np.float32], spec: CropSpec, mask: BoxMask | None = None
) -> Image:
    """Cut one object out of a picture as `spec` says.

    A kept background ends where the picture ends. A masked one does not: the crop has its whole
    margin in the fill colour, so its pixels do not depend on how much of the scene there is.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: (4,) float32 xyxy, pixels; the margin is added here.
        mask: the object's mask, needed when the background is masked.

    Returns:
        (h, w, 3) uint8 RGB, at least 1x1.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = enlarge(box[None], spec.margin)[0]
    wide, high = (int(np.floor(x0)), int(np.ceil(x1))), (int(np.floor(y0)), int(np.ceil(y1)))
    left, right = _within(*wide, width)
    top, bottom = _within(*high, height)
    crop = image[top:bottom, left:right]
    if spec.background == "keep":
        return np.ascontiguousarray(crop)
    if mask is None:
        raise TkError(
            "this embedder was trained on masked crops, and there is no mask",
            fix="give a segmenter (--segmenter), or train with --crop_mode bbox",
        )
    painted = apply_mask(crop, mask.crop(left, top, right, bottom), spec)
    x, y = max(0, left - wide[0]), max(0, top - high[0])
    width, height = x + max(wide[1], right) - left, y + max(high[1], bottom) - top
    canvas = np.full((height, width, 3), spec.fill, np.uint8)
    canvas[y : y + bottom - top, x : x + right - left] = painted
    return canvas


def _within(start: int, stop: int, limit: int) -> tuple[int, int]:
    """Clip a range of pixels to 0..limit, at least one pixel long."""
    first = min(max(start, 0), limit - 1)
    return first, min(max(stop, first + 1), limit)


def _span(start: float, stop: float, limit: int) -> tuple[int, int]:
    """Whole pixels that cover [start, stop), clipped to the picture, at least one."""
    first = int(np.clip(np.floor(start), 0, limit - 1))
    return first, int(np.clip(np.ceil(stop), first + 1, limit))


def apply_mask(crop: Image, mask: NDArray[np.bool_], spec: CropSpec) -> Image:
    """Paint everything outside `mask: (h, w) bool` in the fill colour of `spec`."""
    painted = np.full(crop.shape, spec.fill, np.uint8)
    # Three times faster than numpy's `where`, which was an eighth of the annotator's time.
    cv2.copyTo(crop, mask.view(np.uint8), painted)
    return painted
