"""Pictures of results: boxes, translucent masks and class labels drawn on a photo."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

UNKNOWN = "unknown"
UNKNOWN_COLOR: Color = (110, 110, 110)
# Told apart by eye on photos and on white; no grey, which means unknown.
PALETTE: tuple[Color, ...] = (
    (230, 25, 75), (60, 180, 75), (67, 99, 216), (245, 130, 49), (145, 30, 180),
    (66, 212, 244), (240, 50, 230), (191, 239, 69), (0, 128, 128), (255, 225, 25),
    (154, 99, 36), (128, 0, 0), (0, 0, 170), (128, 128, 0), (250, 150, 170),
    (120, 220, 160), (180, 130, 255), (255, 180, 110), (0, 90, 40), (255, 90, 60),
    (0, 150, 220), (200, 160, 0), (160, 0, 90), (90, 60, 160),
)  # fmt: skip
_FONT = Path(__file__).parent / "fonts" / "DejaVuSans-subset.ttf"
_MASK_ALPHA = 0.45
_Plate = tuple[int, int, int, int]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Drawn:
    """One detection as it is drawn.

    Args:
        box: (4,) float32 xyxy, pixels of the picture; may reach outside it.
        label: text on the plate; empty for none.
        color_key: class name that gives the colour.
        mask: x and y of the top left corner in pixels of the picture, and a bool array (h, w).
        emphasis: draw with a heavier outline and on top of the others.
    """

    box: NDArray[np.float32]
    label: str
    color_key: str
    mask: tuple[int, int, NDArray[np.bool_]] | None = None
    emphasis: bool = False


def class_color(name: str) -> Color:
    """Colour of a class, the same in every run; two names may share one."""
    if name == UNKNOWN:
        return UNKNOWN_COLOR
    return PALETTE[zlib.crc32(_clean(name).encode()) % len(PALETTE)]


def class_colors(names: Iterable[str]) -> dict[str, Color]:
    """Colours of a known set of classes, distinct while the palette lasts.

    Each name gets its `class_color` if it is free, else the next free one.
    """
    colors: dict[str, Color] = {}
    for name in sorted(set(names)):
        color = class_color(name)
        taken = set(colors.values())
        if name != UNKNOWN and color in taken and len(taken) < len(PALETTE):
            start = PALETTE.index(color)
            turned = PALETTE[start:] + PALETTE[:start]
            color = next((free for free in turned if free not in taken), color)
        colors[name] = color
    return colors


def draw_detections(
    image: NDArray[np.uint8],
    detections: Sequence[Drawn],
    *,
    max_side: int = 1600,
    colors: Mapping[str, Color] | None = None,
) -> NDArray[np.uint8]:
    """Draw detections on a copy of a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: in any order; later ones lie on top, emphasised ones on top of all.
        max_side: a larger picture is scaled down to this first, with its boxes and masks.
        colors: colours of classes, as from `class_colors`; a class not in it gets `class_color`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    canvas, scale = _fit(image, max_side)
    colors = colors or {}
    ordered = sorted(detections, key=lambda item: item.emphasis)
    tones = [colors.get(item.color_key) or class_color(item.color_key) for item in ordered]
    _blend_masks(canvas, ordered, tones, scale)
    line = max(1, round(max(canvas.shape[:2]) / 600))
    corners = [_box_pixels(item.box, scale, canvas.shape) for item in ordered]
    for item, tone, corner in zip(ordered, tones, corners, strict=True):
        if corner is not None:
            _draw_box(canvas, corner, tone, line * (2 if item.emphasis else 1))
    plates: list[_Plate] = []
    for item, tone, corner in reversed(list(zip(ordered, tones, corners, strict=True))):
        if corner is not None and item.label:
            _draw_label(canvas, corner, item.label, tone, plates)
    return canvas


def text_ink(text: str, size: int, width: int) -> NDArray[np.uint8] | None:
    """A line of text as coverage 0..255: (h, w) uint8, cut short with an ellipsis where it must be.

    Args:
        text: anything; it is put on one line.
        size: of the letters, pixels.
        width: that it may take, pixels.

    Returns:
        The ink, or None where not even an ellipsis fits.
    """
    return _fitting_ink(_clean(text), size, width)


def _fit(image: NDArray[np.uint8], max_side: int) -> tuple[NDArray[np.uint8], float]:
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image.copy(), 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, dtype=np.uint8), scale


def _blend_masks(
    canvas: NDArray[np.uint8], items: Sequence[Drawn], tones: Sequence[Color], scale: float
) -> None:
    """Tint all masks in one blend, over the rectangle that holds them all."""
    placed = []
    for item, tone in zip(items, tones, strict=True):
        part = _place_mask(item, scale, canvas.shape)
        if part is not None:
            placed.append((*part, tone))
    if not placed:
        return
    left, top = min(part[0] for part in placed), min(part[1] for part in placed)
    right = max(x + mask.shape[1] for x, _, mask, _ in placed)
    bottom = max(y + mask.shape[0] for _, y, mask, _ in placed)
    region = canvas[top:bottom, left:right]
    overlay = region.copy()
    for x, y, mask, tone in placed:
        height, width = mask.shape
        target = overlay[y - top : y - top + height, x - left : x - left + width]
        cv2.copyTo(np.full((height, width, 3), tone, np.uint8), mask, target)
    cv2.addWeighted(overlay, _MASK_ALPHA, region, 1 - _MASK_ALPHA, 0, dst=overlay)
    region[:] = overlay
    for x, y, mask, tone in placed:
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        cv2.drawContours(canvas, outlines, -1, tone, 1)


def _place_mask(
    item: Drawn, scale: float, shape: tuple[int, ...]
) -> tuple[int, int, NDArray[np.uint8]] | None:
    """The part of a mask inside the canvas: x, y and a uint8 array (0 or 1) in canvas pixels."""
    if item.mask is None or item.mask[2].size == 0:
        return None
    x, y, inside = item.mask
    mask = inside.astype(np.uint8)
    if scale != 1:
        height, width = mask.shape
        left, top = round(x * scale), round(y * scale)
        size = (
            max(1, round((x + width) * scale) - left),
            max(1, round((y + height) * scale) - top),
        )
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
        x, y = left, top
    mask = mask[max(0, -y) : max(0, shape[0] - y), max(0, -x) : max(0, shape[1] - x)]
    if mask.size == 0:
        return None
    return max(0, x), max(0, y), np.ascontiguousarray(mask)


def _box_pixels(box: NDArray[np.float32], scale: float, shape: tuple[int, ...]) -> _Plate | None:
    """First and last pixel of a box on the canvas; None when nothing of it is inside."""
    height, width = shape[:2]
    x1, y1, x2, y2 = (float(value) * scale for value in box)
    if not (x1 < width and y1 < height and x2 > 0 and y2 > 0):  # NaN fails too
        return None
    left, top = round(max(x1, 0)), round(max(y1, 0))
    right, bottom = round(min(x2, width)) - 1, round(min(y2, height)) - 1
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(left, right), max(top, bottom)


def _draw_box(canvas: NDArray[np.uint8], corner: _Plate, tone: Color, line: int) -> None:
    # A dark or light rim keeps the line visible on a photo of its own colour.
    _draw_frame(canvas, corner, _contrast(tone), -1, line + 1)
    _draw_frame(canvas, corner, tone, 0, line)


def _draw_frame(
    canvas: NDArray[np.uint8], corner: _Plate, tone: Color, start: int, stop: int
) -> None:
    """Fill the pixels `start` to `stop` inside the edge; cv2.rectangle rounds widths to odd."""
    x1, y1, x2, y2 = (max(0, corner[0] + start), max(0, corner[1] + start), *corner[2:])
    x2, y2 = x2 + 1 - start, y2 + 1 - start
    canvas[y1 : corner[1] + stop, x1:x2] = tone
    canvas[max(y1, corner[3] + 1 - stop) : y2, x1:x2] = tone
    canvas[y1:y2, x1 : corner[0] + stop] = tone
    canvas[y1:y2, max(x1, corner[2] + 1 - stop) : x2] = tone


def _contrast(tone: Color) -> Color:
    """Black on light colours, white on dark ones."""
    luma = 0.299 * tone[0] + 0.587 * tone[1] + 0.114 * tone[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)


def _draw_label(
    canvas: NDArray[np.uint8], corner: _Plate, label: str, tone: Color, plates: list[_Plate]
) -> None:
    height, width = canvas.shape[:2]
    size = int(min(28, max(11, max(height, width) / 64)))
    ink = _fitting_ink(_clean(label), size, width)
    if ink is None or ink.shape[0] > height:
        return
    x, y = _free_place(corner, ink.shape[1], ink.shape[0], (height, width), plates)
    plates.append((x, y, x + ink.shape[1], y + ink.shape[0]))
    patch = canvas[y : y + ink.shape[0], x : x + ink.shape[1]]
    share = ink[..., None].astype(np.float32) / 255
    plate, text = np.array(tone, np.float32), np.array(_contrast(tone), np.float32)
    patch[:] = np.rint(plate + (text - plate) * share)


def _fitting_ink(text: str, size: int, width: int) -> NDArray[np.uint8] | None:
    """Ink of a text that fits a width, cut short with an ellipsis; None when not even that does."""
    ink = _ink(text, size)
    if ink.shape[1] <= width:
        return ink
    kept = int(len(text) * width / ink.shape[1])
    while kept > 0:
        ink = _ink(text[:kept].rstrip() + "…", size)
        if ink.shape[1] <= width:
            return ink
        kept -= 1
    return None


def _free_place(
    corner: _Plate, width: int, height: int, canvas: tuple[int, int], plates: Sequence[_Plate]
) -> tuple[int, int]:
    """Where the plate hides the least of the others: round the box, then down inside it."""
    left, top, right, bottom = corner
    spots = [(left, top - height), (left, top), (left, bottom + 1), (left, bottom + 1 - height)]
    spots += [(right + 1 - width, y) for _, y in spots]
    spots += [(left, top + step * height) for step in range(1, 7)]
    best, least = (0, 0), -1
    for x, y in spots:
        x = max(0, min(x, canvas[1] - width))
        y = max(0, min(y, canvas[0] - height))
        hidden = sum(_overlap((x, y, x + width, y + height), other) for other in plates)
        if hidden == 0:
            return x, y
        if least < 0 or hidden < least:
            best, least = (x, y), hidden
    return best


def _overlap(one: _Plate, two: _Plate) -> int:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0, width) * max(0, height)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONT), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1024)
def _ink(text: str, size: int) -> NDArray[np.uint8]:
    """Coverage 0..255 of a text with a margin round it, (h, w) uint8; height is one per size."""
    font = _font(size)
    ascent, descent = font.getmetrics()
    margin = max(2, size // 5)
    width = int(np.ceil(font.getlength(text))) + 2 * margin
    picture = Image.new("L", (width, ascent + descent + margin))
    ImageDraw.Draw(picture).text((margin, margin // 2), text, fill=255, font=font)
    return np.asarray(picture)


def _clean(text: str) -> str:
    """One printable line in NFC."""
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
