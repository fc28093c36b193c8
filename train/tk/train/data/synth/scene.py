"""One scene: a surface, things that lie about, one to eight tools, light, camera, JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tk.runtime.errors import TkError
from tk.train.data.synth.backgrounds import grain, noise, surface
from tk.train.data.synth.camera import develop
from tk.train.data.synth.clutter import THINGS, write_marks
from tk.train.data.synth.paint import Part, Sprite, extent, paint, project
from tk.train.data.synth.tools import TOOLS

Image = NDArray[np.uint8]
SIZES = (256, 4000)
"""Least and greatest long side of a scene, in pixels."""
CLASSES = tuple(TOOLS)
"""Class names; the place in this tuple plus one is the COCO category id."""
VISIBLE = 0.6
"""Least part of a tool that the tools above it leave to be seen."""
_ASPECTS = (4 / 3, 4 / 3, 3 / 4, 1.0, 16 / 9, 3 / 2, 9 / 16, 2 / 3)
_TRIES = 14


@dataclass(frozen=True)
class Scene:
    """A rendered scene and what is in it.

    Attributes:
        image: (H, W, 3) uint8, RGB, as decoded from `jpeg`.
        jpeg: the file, with its compression artefacts.
        labels: (H, W) uint8, 0 is background, k is the visible part of tool k (from 1).
        classes: class name of tool 1, 2, ...
        boxes: (N, 4) float32, xyxy, pixels, tight around the visible part.
        visible: (N,) float32, part of each tool that no other tool hides, 0.6..1.
    """

    image: Image
    jpeg: bytes
    labels: Image
    classes: tuple[str, ...]
    boxes: NDArray[np.float32]
    visible: NDArray[np.float32]

    def mask(self, number: int) -> NDArray[np.bool_]:
        """(H, W) bool, the visible part of the tool at place `number` (from 0) in `classes`."""
        seen: NDArray[np.bool_] = self.labels == number + 1
        return seen


class _Sun(NamedTuple):
    """The light of a scene: where it stands, how far and how dark shadows fall, how soft."""

    towards: tuple[float, float]
    throw: float
    dark: float
    blur: float


def render_scene(seed: int, index: int, size: int) -> Scene:
    """Render scene `index` of a seeded series; the same three numbers give the same bits.

    Args:
        seed: of the series, 0 or greater.
        index: of the scene, 0 or greater; scenes are independent of one another.
        size: long side in pixels, 256..4000.

    Raises:
        TkError: `size` is outside its range.
    """
    check_size(size)
    rng = np.random.default_rng([seed, index])
    height, width = _shape(rng, size)
    canvas = surface(rng, height, width)
    labels = np.zeros((height, width), np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    long = max(height, width)
    sun = _Sun(
        (float(np.cos(angle)), float(np.sin(angle))),
        rng.uniform(0.004, 0.014) * long,
        rng.uniform(0.35, 0.7),
        rng.uniform(0.003, 0.01) * long,
    )
    _scatter(rng, canvas, sun)
    write_marks(rng, canvas)
    classes, whole = _lay_tools(rng, canvas, labels, sun)
    jpeg = develop(rng, canvas)
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    boxes = np.array([_box(labels, k + 1) for k in range(len(classes))], np.float32).reshape(-1, 4)
    seen = np.bincount(labels.ravel(), minlength=len(classes) + 1)[1:]
    return Scene(
        image=np.asarray(decoded, dtype=np.uint8),
        jpeg=jpeg,
        labels=labels,
        classes=classes,
        boxes=boxes,
        visible=(seen / np.maximum(whole, 1)).astype(np.float32),
    )


def check_size(size: int) -> None:
    """Refuse a long side that no scene is drawn for."""
    low, high = SIZES
    if not low <= size <= high:
        raise TkError(
            "the size of the scenes (their long side) is out of range",
            expected=f"{low}..{high} pixels",
            found=str(size),
            fix=f"use --size {min(max(size, low), high)}",
        )


def _shape(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Height and width of a scene of a random common aspect ratio."""
    aspect = _ASPECTS[int(rng.integers(len(_ASPECTS)))]
    short = round(size * min(aspect, 1 / aspect))
    return (short, size) if aspect >= 1 else (size, short)


def _scatter(rng: np.random.Generator, canvas: Image, sun: _Sun) -> None:
    """Lay things that are no tool; most scenes have a few, some have many."""
    height, width = canvas.shape[:2]
    for _ in range(int(rng.choice([0, 2, 4, 7, 11], p=[0.25, 0.25, 0.25, 0.15, 0.1]))):
        draw, least, greatest = THINGS[int(rng.integers(len(THINGS)))]
        parts = draw(rng)
        length = rng.uniform(least, greatest) * max(height, width)
        matrix = _placing(rng, parts, length)
        matrix = _shifted(matrix, rng.uniform(0, width), rng.uniform(0, height))
        _paste(canvas, _painted(rng, parts, matrix, sun), sun)


def _lay_tools(
    rng: np.random.Generator, canvas: Image, labels: Image, sun: _Sun
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Draw the tools of a scene, each of another class, and note in `labels` what is seen.

    Returns:
        the classes, and how many pixels of each there would be were nothing on top.
    """
    height, width = canvas.shape[:2]
    count = int(rng.integers(1, 3)) if rng.random() < 0.1 else int(rng.integers(3, 9))
    order = rng.permutation(len(CLASSES))[:count]
    scale = rng.uniform(0.85, 1.15)  # one distance of the camera for the scene
    laid: list[str] = []
    whole: list[int] = []
    for name in (CLASSES[i] for i in order):
        parts = TOOLS[name](rng)
        share = float(np.clip(rng.uniform(0.23, 0.4) * scale, 0.2, 0.45))
        close = rng.random() < 0.3  # most tools lie apart while there is room
        for attempt in range(_TRIES):
            most = 0.3 if close or attempt > _TRIES * 0.6 else 0.02
            length = max(share * (1 - 0.03 * attempt), 0.2) * max(height, width)
            matrix = _spot(rng, parts, length, (height, width))
            if matrix is None or not _free(parts, matrix, labels, whole, most):
                continue
            sprite = _painted(rng, parts, matrix, sun)
            if not _leaves_seen(sprite, labels, whole):
                continue
            _paste(canvas, sprite, sun)
            ours, theirs = _overlap(sprite, labels.shape)
            solid = sprite.alpha[theirs] > 127
            laid.append(name)
            whole.append(int(np.count_nonzero(solid)))
            labels[ours][solid] = len(laid)
            break
    return tuple(laid), np.array(whole, np.int64)


def _placing(rng: np.random.Generator, parts: list[Part], length: float) -> NDArray[np.float64]:
    """A (3, 3) homography that turns, tilts and scales a drawing, its middle at (0, 0)."""
    low, high = extent(parts)
    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(-0.08, 0.08)
    cos, sin = np.cos(angle), np.sin(angle)
    flip = 1.0 if rng.random() < 0.5 else -1.0
    stretch = rng.uniform(0.92, 1.08)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, lean], [0.0, flip * stretch]])
    unit = 1 / float(max(high - low))
    centre = np.eye(3)
    centre[:2] = [
        [unit, 0, -unit * (low[0] + high[0]) / 2],
        [0, unit, -unit * (low[1] + high[1]) / 2],
    ]
    tilt = np.eye(3)
    tilt[:2, :2] = linear
    tilt[2, :2] = rng.uniform(-0.14, 0.14, 2)
    placed: NDArray[np.float64] = np.diag([length, length, 1.0]) @ tilt @ centre
    return placed


def _shifted(matrix: NDArray[np.float64], x: float, y: float) -> NDArray[np.float64]:
    shift = np.eye(3)
    shift[:2, 2] = x, y
    moved: NDArray[np.float64] = shift @ matrix
    return moved


def _spot(
    rng: np.random.Generator, parts: list[Part], length: float, shape: tuple[int, int]
) -> NDArray[np.float64] | None:
    """A placing that lies whole within the scene, or None where the drawing does not fit."""
    matrix = _placing(rng, parts, length)
    points, _ = project([p for part in parts for p in part.outlines], matrix)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.008 * max(shape)
    spare = np.array(shape[::-1]) - (high - low) - 2 * margin
    if (spare < 0).any():
        return None
    x, y = (margin - low + spare * rng.random(2)).tolist()
    return _shifted(matrix, x, y)


def _free(
    parts: list[Part],
    matrix: NDArray[np.float64],
    labels: Image,
    whole: list[int],
    most: float,
) -> bool:
    """A quick look, at few points, at whether a placing hides at most a part of any other tool."""
    step = max(1, max(labels.shape) // 160)
    coarse = labels[::step, ::step]
    cover = np.zeros(coarse.shape, np.uint8)
    outlines = [p for part in parts if not part.decal for p in part.outlines]
    for points in project(outlines, np.diag([16 / step, 16 / step, 1.0]) @ matrix)[1]:
        cv2.fillPoly(cover, [np.round(points).astype(np.int32)], 1, cv2.LINE_8, 4)
    hidden = np.bincount(coarse[cover > 0], minlength=len(whole) + 1)[1:]
    return bool((hidden * step * step <= most * np.array(whole)).all())


def _leaves_seen(sprite: Sprite, labels: Image, whole: list[int]) -> bool:
    """Whether every tool below keeps its least visible part, counted in pixels."""
    ours, theirs = _overlap(sprite, labels.shape)
    hidden = np.bincount(labels[ours][sprite.alpha[theirs] > 127], minlength=len(whole) + 1)[1:]
    seen = np.bincount(labels.ravel(), minlength=len(whole) + 1)[1:] if hidden.any() else hidden
    return bool((~hidden.astype(bool) | (seen - hidden >= VISIBLE * np.array(whole))).all())


def _painted(
    rng: np.random.Generator, parts: list[Part], matrix: NDArray[np.float64], sun: _Sun
) -> Sprite:
    sheen = 0.26 * noise(rng, (48, 48), (4, 4)) + np.float32(rng.uniform(-0.1, 0.1))
    sheen += np.float32(rng.uniform(0.0, 0.1)) * grain(rng, (48, 48))
    return paint(parts, matrix, sun.towards, sheen.astype(np.float32))


def _overlap(
    sprite: Sprite, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The rows and columns that a sprite and the scene share, in the scene and in the sprite."""
    height, width = sprite.alpha.shape
    x0, y0 = max(sprite.x, 0), max(sprite.y, 0)
    x1, y1 = max(x0, min(sprite.x + width, shape[1])), max(y0, min(sprite.y + height, shape[0]))
    ours = (slice(y0, y1), slice(x0, x1))
    theirs = (slice(y0 - sprite.y, y1 - sprite.y), slice(x0 - sprite.x, x1 - sprite.x))
    return ours, theirs


def _paste(canvas: Image, sprite: Sprite, sun: _Sun) -> None:
    """Darken the scene by the sprite's shadow, then lay the sprite on it."""
    shadow = _shadow(sprite, sun)
    ours, theirs = _overlap(shadow, canvas.shape)
    keep = shadow.alpha[theirs]
    if keep.size:
        _blend(canvas, ours, keep, None)
    ours, theirs = _overlap(sprite, canvas.shape)
    if sprite.alpha[theirs].size:
        _blend(canvas, ours, 255 - sprite.alpha[theirs], sprite.rgb[theirs])


def _blend(canvas: Image, where: tuple[slice, slice], keep: Image, add: Image | None) -> None:
    """Scale the window by `keep` (255 keeps all) and add premultiplied colours."""
    under = cv2.multiply(canvas[where], cv2.merge([keep, keep, keep]), scale=1 / 255)
    canvas[where] = under if add is None else cv2.add(under, np.asarray(add))


def _shadow(sprite: Sprite, sun: _Sun) -> Sprite:
    """The soft shadow of a sprite: its `alpha` says how much light is left, 255 is all."""
    shrink = max(1, int(sun.blur / 1.5))
    pad = int(3 * sun.blur) + 2
    padded = cv2.copyMakeBorder(sprite.alpha, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    full = (padded.shape[1], padded.shape[0])
    small = (max(1, full[0] // shrink), max(1, full[1] // shrink))
    soft = cv2.resize(padded, small, interpolation=cv2.INTER_AREA) if shrink > 1 else padded
    soft = cv2.GaussianBlur(soft, (0, 0), sun.blur / shrink)
    left = cv2.convertScaleAbs(soft, alpha=-sun.dark, beta=255)
    if shrink > 1:
        left = cv2.resize(left, full, interpolation=cv2.INTER_LINEAR)
    x, y = (round(-sun.throw * v) for v in sun.towards)
    return Sprite(sprite.x - pad + x, sprite.y - pad + y, sprite.rgb, np.asarray(left, np.uint8))


def _box(labels: Image, number: int) -> tuple[int, int, int, int]:
    """The tight xyxy box of one label; it is there, for a tool keeps its least visible part."""
    mask = labels == number
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
